"""Calibrations in parts, one after the other in this process."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.cli import main
from r1v_export.config import BuildConfig, CalibrationConfig
from r1v_export.pipeline.calibration import chosen_recipe
from r1v_export.pipeline.sharded_calibration import calibrate as calibrate_config
from r1v_export.pipeline.sharded_calibration import remove_resume_folders
from r1v_export.pipeline.workers import Task, ThisProcess
from r1v_export.progress import ProgressCallback, ignore_progress
from r1v_export.quantization.calibration.blockwise_runner import BlockwiseRunner
from r1v_export.quantization.calibration.calibrate import Quantization

Tree = Callable[[Path], dict[str, bytes]]


def calibrate(*arguments: object) -> int:
    return main.run(["calibrate", *map(str, arguments)])


def test_shards_in_one_command_are_the_shards_of_several_commands(tiny_model: Path, tmp_path: Path, tree: Tree) -> None:
    """By GPTQ, whose sums depend on their order."""
    options = (tiny_model, "--precision", "int4", "--samples", 3)
    assert calibrate(*options, "--shards", 2, "-o", tmp_path / "together") == 0
    for number in (1, 2):
        assert calibrate(*options, "--shard", f"{number}/2", "-o", tmp_path / "shards" / str(number)) == 0
    assert calibrate(tiny_model, "--merge", tmp_path / "shards", "-o", tmp_path / "merged") == 0
    assert tree(tmp_path / "together") == tree(tmp_path / "merged")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["merged", "shards", "together"]


def test_finished_parts_are_not_done_again(
    tiny_model: Path, tmp_path: Path, tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped between the shards and their merge, and before each task once more."""
    options = (tiny_model, "--precision", "fp8", "--samples", 2, "--shards", 2)
    assert calibrate(*options, "-o", tmp_path / "whole") == 0
    run, stopped = ThisProcess.run, []

    def run_and_stop(self: ThisProcess, tasks: Sequence[Task], on_progress: ProgressCallback) -> None:
        run(self, tasks[: len(stopped) + 1], on_progress)
        if len(stopped) < 2:
            stopped.append(sorted(path.name for path in tmp_path.glob(".out.work-shards/*/*")))
            raise KeyboardInterrupt
        run(self, tasks, on_progress)

    monkeypatch.setattr(ThisProcess, "run", run_and_stop)
    assert calibrate(*options, "-o", tmp_path / "out") == 130
    assert calibrate(*options, "-o", tmp_path / "out") == 130
    assert stopped == [["1-of-2"], ["1-of-2", "2-of-2"]]
    assert calibrate(*options, "-o", tmp_path / "out") == 0
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")
    assert calibrate(*options, "-o", tmp_path / "out") == 0  # which is done already
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "whole"]


def test_what_another_calibration_left_is_dropped(
    tiny_model: Path, tmp_path: Path, tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(self: ThisProcess, tasks: Sequence[Task], on_progress: ProgressCallback) -> None:
        run(self, tasks[:1], on_progress)
        raise KeyboardInterrupt

    run, options = ThisProcess.run, (tiny_model, "--samples", 2, "--shards", 2)
    with monkeypatch.context() as stopping:
        stopping.setattr(ThisProcess, "run", stop)
        assert calibrate(*options, "--precision", "int8", "-o", tmp_path / "out") == 130
    assert calibrate(*options, "--precision", "fp8", "-o", tmp_path / "out") == 0
    assert calibrate(*options, "--precision", "fp8", "-o", tmp_path / "whole") == 0
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")


def test_a_result_that_was_lost_is_there_again(
    tiny_model: Path, tmp_path: Path, tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a build that is killed before the calibration is recorded."""
    config = BuildConfig(model=str(tiny_model), precision="fp8", calibration=CalibrationConfig(samples=2, shards=2))
    checkpoint, out, work = Checkpoint.open(tiny_model), tmp_path / "out", tmp_path / "work"

    def run() -> dict[str, bytes]:
        calibrate_config(config, chosen_recipe(config), checkpoint, out, work, ignore_progress)
        return tree(out)

    before = run()
    shutil.rmtree(out)
    monkeypatch.setattr(BlockwiseRunner, "_run_block", None)
    monkeypatch.setattr(Quantization, "quantize", None)
    assert run() == before
    remove_resume_folders(work)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_search_within_a_budget_has_no_shards(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert calibrate("--budget", "size=20GB", "--shards", 2, "-o", tmp_path / "out") == 2
    assert "cannot be split into shards" in capsys.readouterr().err
