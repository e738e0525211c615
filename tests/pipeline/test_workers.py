"""A build's config for a process with another working folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.config import BUILTIN_MODEL, BuildConfig, CalibrationConfig
from r1v_export.pipeline.workers import portable, read_paths


def test_relative_paths_become_absolute_and_names_stay(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model").symlink_to(tiny_model)
    (tmp_path / "data.jsonl").touch()
    monkeypatch.chdir(tmp_path)
    calibration = CalibrationConfig(data="data.jsonl")
    config = BuildConfig(model="model", precision="fp8", recipe="fp8-kv", calibration=calibration)
    given = portable(config, Checkpoint.open("model"))
    assert (given.model, given.recipe) == (str(tmp_path / "model"), "fp8-kv")
    assert given.calibration.data == str(tmp_path / "data.jsonl")
    assert read_paths(given) == [tmp_path / "model", tmp_path / "data.jsonl"]
    assert given.saved("folder", None).model_dump() == config.saved("folder", None).model_dump() | {
        "model": "tiny-model"
    }


def test_a_hub_model_is_the_folder_that_it_was_downloaded_to_and_the_builtin_one_its_name(tiny_model: Path) -> None:
    checkpoint = Checkpoint.open(tiny_model)
    hub = portable(BuildConfig(model="owner/name", revision="main"), checkpoint)
    assert (hub.model, hub.revision) == (str(tiny_model), None)
    assert portable(BuildConfig(), checkpoint).model == BUILTIN_MODEL
