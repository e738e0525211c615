"""The precision of a build whose recipe or finished calibration implies it."""

from __future__ import annotations

from pathlib import Path

import pytest

from r1v_export.build_file import load_config
from r1v_export.cli import main
from r1v_export.errors import BundleError, UsageError
from r1v_export.pipeline.precision import with_precision
from r1v_export.quantization.artifact.documents import RECIPE
from r1v_export.quantization.recipe import load, names


@pytest.mark.parametrize("recipe", names())
def test_a_recipe_implies_its_precision(recipe: str) -> None:
    implied = with_precision(load_config(None, {"recipe": recipe}))
    assert implied.precision == load(recipe).precision
    assert f"--precision {implied.precision} --recipe {recipe}" in implied.command
    assert with_precision(implied) == implied


def test_without_a_recipe_the_precision_stays_one_that_nobody_asked_for() -> None:
    """So that a quantized checkpoint brings its own."""
    assert "precision" not in with_precision(load_config(None, {})).model_fields_set


def test_another_precision_than_the_recipe_s_is_refused_with_both() -> None:
    with pytest.raises(UsageError, match="another precision") as caught:
        with_precision(load_config(None, {"precision": "fp8", "recipe": "w4a8"}))
    assert (caught.value.where, caught.value.found) == ("--recipe w4a8", "precision fp8")
    assert "int4" in str(caught.value.expected)


def test_another_precision_than_a_calibration_s_says_how_to_have_it(tmp_path: Path) -> None:
    (tmp_path / RECIPE).write_text(load("w4a8").to_yaml(), encoding="utf-8")
    with pytest.raises(UsageError, match="another precision") as caught:
        with_precision(load_config(None, {"precision": "fp8", "calibration": {"artifact": str(tmp_path)}}))
    assert "r1v-export calibrate --precision" in str(caught.value.fix)


def test_what_is_no_calibration_is_named_as_it_was_typed(tmp_path: Path) -> None:
    file, empty, bundle = tmp_path / "file", tmp_path / "empty", tmp_path / "bundle"
    file.write_text("")
    empty.mkdir()
    (bundle / "calibration").mkdir(parents=True)
    (bundle / "calibration" / "recipe.yaml").write_text("")
    expected = {
        tmp_path / "nowhere": ("no such folder", "correct --calibrated, or calibrate"),
        file: ("a file", "correct --calibrated, or calibrate"),
        empty: ("neither of them", "correct --calibrated, or calibrate"),
        bundle: ("neither of them", f"--calibrated {bundle / 'calibration'}"),
    }
    for path, (found, fix) in expected.items():
        with pytest.raises(BundleError, match="calibration") as caught:
            with_precision(load_config(None, {"calibration": {"artifact": str(path)}}))
        assert (caught.value.where, caught.value.found) == (path, found)
        assert fix in str(caught.value.fix)


def test_a_build_by_a_recipe_alone_is_planned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["build", "--recipe", "int4-rtn", "-o", str(tmp_path / "out"), "--dry-run"]) == 0
    assert "calibration" in capsys.readouterr().out
