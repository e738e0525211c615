"""A build's config for a process with another working folder."""

from __future__ import annotations

from copy import copy
from dataclasses import replace
from pathlib import Path

import pytest

from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.checkpoint.resolve import Source
from r1v_export.config import BUILTIN_MODEL, BuildConfig, CalibrationConfig
from r1v_export.manifest import StageEntry
from r1v_export.pipeline.stage import fingerprint
from r1v_export.pipeline.stage_task import stage_task
from r1v_export.pipeline.stages import Build
from r1v_export.pipeline.workers import portable, read_paths
from r1v_export.progress import ignore_progress
from r1v_export.targets import registry


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


def test_tasks_of_a_hub_model_have_the_same_fingerprint_on_a_worker(tiny_model: Path, tmp_path: Path) -> None:
    config = registry.resolved(BuildConfig(model="owner/name", revision="main"))
    own, downloaded = Checkpoint.open(tiny_model), copy(Checkpoint.open(tiny_model))
    downloaded.source = Source("hub", "owner/name", "0" * 40)
    here = Build(config, downloaded, tmp_path)
    there = Build(portable(config, downloaded), own, tmp_path, parent_label=here.label)
    sources = dict.fromkeys(here.source_files(), "0" * 64)
    finished = {stage.name: StageEntry(fingerprint="0" * 64, files={}) for stage in here.stages()}
    tasks = [pair for pair in zip(here.stages(), there.stages(), strict=True) if pair[0].is_task]
    assert len(tasks) == 6, "four graphs, an engine and its gate"
    for stage, other in tasks:
        assert fingerprint(stage, sources, finished) == fingerprint(other, sources, finished), stage.name


def test_a_worker_compares_as_the_build_chose_whatever_memory_it_has(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = registry.resolved(BuildConfig(model=str(tiny_model)))
    job = Build(config, Checkpoint.open(tiny_model), tmp_path)
    stage = next(stage for stage in job.stages() if stage.name == "onnxruntime-parity")
    whole = stage.needs().memory_bytes
    job = replace(job, worker_bytes=whole - 1, gates={})
    stage = next(stage for stage in job.stages() if stage.name == "onnxruntime-parity")
    assert stage.needs().memory_bytes < whole
    sources = dict.fromkeys(job.source_files(), "0" * 64)
    finished = {stage.name: StageEntry(fingerprint="0" * 64, files={}) for stage in job.stages()}
    chosen: list[str] = []
    monkeypatch.setattr(
        "r1v_export.pipeline.build_gate.check_engine",
        lambda there, target, *rest: chosen.append(there.gate(target)),
    )
    task = stage_task(job, stage, sources, finished)
    task.function(*task.arguments, on_progress=ignore_progress)
    assert chosen == ["streamed"]


def test_a_calibration_that_is_one_part_needs_the_memory_of_this_machine(tmp_path: Path) -> None:
    parts = {shards: CalibrationConfig(shards=shards, samples=4) for shards in (1, 2)}
    needs = {}
    for shards, calibration in parts.items():
        config = registry.resolved(BuildConfig(precision="int4", calibration=calibration))
        job = Build(config, Checkpoint.open(None), tmp_path, worker_bytes=1000)
        needs[shards] = next(stage for stage in job.stages() if stage.name == "calibration").needs()
    assert needs[1].obstacle is None
    assert needs[2].obstacle is not None
