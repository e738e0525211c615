"""The resume folder: used whenever it was left, removed when all is done, never another's."""

from __future__ import annotations

from pathlib import Path

import pytest

from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.errors import UsageError
from r1v_export.quantization.calibration.resume import default_resume_folder
from tests.quantization.calibration_cases import (
    RTN_RECIPE,
    calibrated,
)


@pytest.mark.parametrize("left", [("activations",), (".key.json.unfinished",), ("records", "scales")])
def test_a_resume_folder_that_was_left_at_a_bad_moment_is_used_anyway(
    synth_checkpoint: Checkpoint, tmp_path: Path, left: tuple[str, ...]
) -> None:
    work = tmp_path / "work"
    work.mkdir()
    for name in left:
        (work / name).touch() if name.startswith(".") else (work / name).mkdir()
    calibrated(synth_checkpoint, RTN_RECIPE, tmp_path / "out", 1, resume_folder=work)
    assert not work.exists()


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
