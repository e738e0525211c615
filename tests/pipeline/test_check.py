"""`check`: one bundle, and several of one checkpoint side by side."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from r1v_export.bundle import Bundle
from r1v_export.checkpoint.synth import synthesize
from r1v_export.cli import main
from r1v_export.config import BuildConfig
from r1v_export.errors import InputError, UsageError
from r1v_export.pipeline.build import build
from r1v_export.pipeline.check import open_others
from r1v_export.pipeline.parity_gate import GateRun


def test_bundles_side_by_side_are_measured_on_the_same_questions(
    tiny_bundle: Path, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = shutil.copytree(tiny_bundle, tmp_path / "other")
    options = ("--model", tiny_model, "--against", other, "--questions", 1, "--max-new-tokens", 3)
    assert main.run(["check", str(tiny_bundle), *map(str, options), "--format", "json"]) == 0
    own, other = json.loads(capsys.readouterr().out)["bundles"]
    assert (own.pop("name"), other.pop("name")) == (tiny_bundle.name, "other")
    assert own == other
    assert own["precision"] == "fp32"
    assert own["size_bytes"] == sum(path.stat().st_size for path in (tiny_bundle / "graphs").iterdir())
    assert own["mean_kl"] < 1e-6
    assert "Accuracy against size" in (tiny_bundle / "report" / "local" / "parity.html").read_text()


def test_bundles_of_different_checkpoints_are_not_put_side_by_side(
    tiny_bundle: Path, tiny_config: BuildConfig, tmp_path: Path
) -> None:
    model = synthesize(tmp_path / "another", preset="nano", vision_layers=1, language_layers=1, seed=1)
    other = build(tiny_config.model_copy(update={"model": str(model)}), tmp_path / "other").out
    with pytest.raises(UsageError, match="different checkpoints"):
        open_others(Bundle.open(tiny_bundle), [other])
    with pytest.raises(UsageError, match="with itself"):
        open_others(Bundle.open(tiny_bundle), [tiny_bundle])


def test_a_check_that_takes_hours_says_so_before_it_begins(
    tiny_bundle: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Questions are generated: there are as many as are asked for."""

    def whole(*arguments: object) -> None:
        raise InputError("begun")

    monkeypatch.setattr(GateRun, "whole", whole)
    command = ["check", str(tiny_bundle), "--model", str(tiny_model), "--questions"]
    assert main.run([*command, "99999"]) == 1
    assert re.search(r"^  99999 questions: about \d+ h \d\d min on CPUs that do nothing else$", err(capsys), re.M)
    assert main.run([*command, "4"]) == 1
    assert "questions: about" not in err(capsys)


def err(capsys: pytest.CaptureFixture[str]) -> str:
    printed = capsys.readouterr().err
    assert "begun" in printed
    return printed
