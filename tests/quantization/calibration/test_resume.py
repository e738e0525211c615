"""The resume folder: used whenever it was left, removed when all is done, never another's."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest

from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.errors import UsageError
from r1v_export.quantization.calibration.blockwise_runner import BlockwiseRunner
from r1v_export.quantization.calibration.calibrate import Quantization
from r1v_export.quantization.calibration.resume import default_resume_folder
from tests.quantization.calibration_cases import AWQ_RECIPE, RTN_RECIPE, calibrated


@pytest.mark.parametrize("left", [("activations",), (".key.json.unfinished",), ("records", "scales")])
def test_a_resume_folder_that_was_left_at_a_bad_moment_is_used_anyway(
    synth_checkpoint: Checkpoint, tmp_path: Path, left: tuple[str, ...]
) -> None:
    work = tmp_path / "work"
    work.mkdir()
    for name in left:
        (work / name).touch() if name.startswith(".") else (work / name).mkdir()
    files = calibrated(synth_checkpoint, RTN_RECIPE, tmp_path / "out", 1, resume_folder=work)
    assert files == calibrated(synth_checkpoint, RTN_RECIPE, tmp_path / "again", 1)


def test_what_is_left_of_a_calibration_that_was_killed_at_its_very_end_is_removed(
    synth_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    before = calibrated(synth_checkpoint, RTN_RECIPE, out, 1)
    (default_resume_folder(out) / "scales").mkdir(parents=True)
    assert calibrated(synth_checkpoint, RTN_RECIPE, out, 1) == before
    assert not default_resume_folder(out).exists()


def test_a_folder_with_other_files_is_refused(synth_checkpoint: Checkpoint, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep me")
    with pytest.raises(UsageError, match="resume folder holds other files"):
        calibrated(synth_checkpoint, RTN_RECIPE, tmp_path / "out", resume_folder=tmp_path)
    assert (tmp_path / "mine.txt").read_text() == "keep me"


def test_a_resume_folder_of_the_callers_keeps_the_finished_calibration(
    synth_checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As hard links: a result that was lost is there again, and takes no disk twice."""
    out, work = tmp_path / "out", tmp_path / "work"
    before = calibrated(synth_checkpoint, AWQ_RECIPE, out, 1, resume_folder=work)
    assert all(path.stat().st_nlink == 2 for path in out.rglob("*") if path.is_file())
    assert not (work / "activations").exists()
    shutil.rmtree(out)
    monkeypatch.setattr(BlockwiseRunner, "_run_block", None)
    monkeypatch.setattr(Quantization, "quantize", None)
    assert calibrated(synth_checkpoint, AWQ_RECIPE, out, 1, resume_folder=work) == before


@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP])
def test_without_hard_links_the_result_is_moved(
    synth_checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def link(source: object, target: object) -> None:
        raise OSError(number, os.strerror(number))

    before = calibrated(synth_checkpoint, RTN_RECIPE, tmp_path / "before", 1)
    monkeypatch.setattr(os, "link", link)
    work = tmp_path / "work"
    assert calibrated(synth_checkpoint, RTN_RECIPE, tmp_path / "out", 1, resume_folder=work) == before
    assert not work.exists()


def test_a_full_disk_is_no_lack_of_hard_links(
    synth_checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def link(source: object, target: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "link", link)
    with pytest.raises(OSError, match="No space left"):
        calibrated(synth_checkpoint, RTN_RECIPE, tmp_path / "out", 1, resume_folder=tmp_path / "work")
    monkeypatch.undo()
    assert calibrated(synth_checkpoint, RTN_RECIPE, tmp_path / "out", 1, resume_folder=tmp_path / "work")
