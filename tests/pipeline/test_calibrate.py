"""Calibrations apart from builds: in one run, in shards, and taken up by a build."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from r1v_export.cli import main
from r1v_export.config import BuildConfig, CalibrationConfig
from r1v_export.errors import BundleError, UsageError
from r1v_export.pipeline import calibration_cost
from r1v_export.pipeline.build import build
from r1v_export.pipeline.calibration import CALIBRATION
from r1v_export.progress import Progress
from r1v_export.quantization.artifact.documents import read_stats

Tree = Callable[[Path], dict[str, bytes]]


def calibrate(*arguments: object) -> int:
    return main.run(["calibrate", *map(str, arguments)])


@pytest.fixture(scope="module")
def whole(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An FP8 calibration on four samples. Not to be written to."""
    out = tmp_path_factory.mktemp("calibrations") / "whole"
    assert calibrate(tiny_model, "--precision", "fp8", "--samples", 4, "-o", out) == 0
    return out


@pytest.fixture(scope="module")
def shards(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with its three shards. Not to be written to."""
    folder = tmp_path_factory.mktemp("shards")
    for number in (1, 2, 3):
        options = ("--precision", "fp8", "--samples", 4, "--shard", f"{number}/3", "-o", folder / str(number))
        assert calibrate(tiny_model, *options) == 0
    return folder


def test_merged_shards_hold_the_quantized_values_and_scales_of_one_run(
    tiny_model: Path, whole: Path, shards: Path, tmp_path: Path, tree: Tree, capsys: pytest.CaptureFixture[str]
) -> None:
    assert calibrate(tiny_model, "--merge", shards, "-o", tmp_path / "merged", "--format", "json") == 0
    printed = json.loads(capsys.readouterr().out)
    assert (printed["recipe"], printed["samples"], printed["shard"]) == ("fp8", 4, None)
    merged, expected = tree(tmp_path / "merged"), tree(whole)
    assert merged.keys() == expected.keys()
    assert [name for name in expected if merged[name] != expected[name]] in ([], ["stats.json"])  # of means
    assert sorted(path.name for path in tmp_path.iterdir()) == ["merged"]


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ((), "Pass --precision, --recipe or --budget"),
        (("--precision", "fp8", "--recipe", "none"), "no recipe 'none'"),
        (("--precision", "fp8", "--shard", "4/3"), "no such shard"),
        (("--precision", "fp8", "--shard", "first"), "Invalid --shard"),
        (("--budget", "kl=0.02", "--shard", "1/2"), "cannot be split into shards"),
        (("--budget", "small"), "Invalid --budget"),
        (("--budget", "kl=0.02", "--recipe", "fp8"), "does not go with a recipe"),
        (("--precision", "fp8", "--recipe", "int4-awq"), "of another precision"),
        (("--merge", "x", "--precision", "fp8"), "Cannot combine --merge"),
    ],
)
def test_settings_that_exclude_each_other_are_usage_errors(
    tiny_model: Path, tmp_path: Path, options: tuple[str, ...], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert calibrate(tiny_model, *options, "-o", tmp_path / "out") == 2
    assert complaint in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (("--precision", "fp8", "--device", "cuda"), "There is no CUDA GPU"),
        (("--precision", "fp8", "--shard", "1/2", "--device", "cuda"), "There is no CUDA GPU"),
        (("--merge", "{folder}", "--device", "cuda"), "There is no CUDA GPU"),
        (("--precision", "fp8", "--samples", "3", "--shards", "4"), "more shards than calibration samples"),
        (("--precision", "fp8", "--samples", "3", "--shard", "1/4"), "more shards than calibration samples"),
        (("--precision", "fp8", "--calib", "{two}", "--shards", "3"), "expected: at most 2"),
        (("--precision", "fp8", "--calib", "{two}", "--shard", "1/3"), "expected: at most 2"),
        (("--precision", "fp8", "--shard", "1/2", "--calib", "{folder}/none"), "no calibration set here"),
    ],
)
def test_what_cannot_run_is_refused_before_a_stage_is_announced(
    tiny_model: Path,
    tmp_path: Path,
    options: tuple[str, ...],
    complaint: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    two = tmp_path / "two.jsonl"
    line = json.dumps({"image": "x.png", "prompt": "?"})
    two.write_text(f"{line}\n{line}\n")
    words = [option.format(folder=tmp_path, two=two) for option in options]
    assert calibrate(tiny_model, *words, "-o", tmp_path / "out") in (1, 4)
    said = capsys.readouterr().err
    assert said.startswith("error:")
    assert complaint in said


def without_the_second(shards: Path, folder: Path) -> list[Path]:
    return [shards / "1", shards / "3"]


def with_one_of_other_samples(shards: Path, folder: Path) -> list[Path]:
    plan = json.loads((shards / "3" / "key.json").read_text())
    (folder / "key.json").write_text(json.dumps({**plan, "data": "0" * 64}))
    return [shards / "1", shards / "2", folder]


def with_an_unfinished_one(shards: Path, folder: Path) -> list[Path]:
    return [shards / "1", shards / "2", folder]


def with_one_that_is_missing(shards: Path, folder: Path) -> list[Path]:
    return [shards / "1", shards / "2", shards / "4"]


def with_a_finished_calibration(shards: Path, folder: Path) -> list[Path]:
    for name in ("recipe.yaml", "stats.json"):
        (folder / name).touch()
    return [folder]


@pytest.mark.parametrize(
    ("choose", "exit_code", "complaint"),
    [
        (without_the_second, 2, "found:    1/3, 3/3"),
        (with_one_of_other_samples, 2, "the calibration set differs"),
        (with_an_unfinished_one, 1, "found:    an empty folder"),
        (with_one_that_is_missing, 1, "found:    no such path"),
        (with_a_finished_calibration, 1, "r1v-export build MODEL --calibrated "),
    ],
)
def test_shards_that_do_not_make_a_calibration_are_reported_and_nothing_is_written(
    tiny_model: Path,
    shards: Path,
    tmp_path: Path,
    choose: Callable[[Path, Path], list[Path]],
    exit_code: int,
    complaint: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "other").mkdir()
    merges = [word for folder in choose(shards, tmp_path / "other") for word in ("--merge", folder)]
    assert calibrate(tiny_model, *merges, "-o", tmp_path / "merged") == exit_code
    said = capsys.readouterr().err
    assert complaint in said
    assert "merge: stopped" not in said
    assert [path.name for path in tmp_path.iterdir()] == ["other"]


def with_calibration(config: BuildConfig, folder: Path, precision: str = "fp8", **changes: object) -> BuildConfig:
    calibration = CalibrationConfig(artifact=str(folder))
    return config.model_copy(update={"precision": precision, "calibration": calibration, **changes})


def test_a_build_with_a_finished_calibration_is_the_build_that_calibrates(
    tiny_config: BuildConfig, whole: Path, tmp_path: Path, tree: Tree
) -> None:
    built = build(with_calibration(tiny_config, whole), tmp_path / "taken")
    own = tiny_config.model_copy(update={"precision": "fp8", "calibration": CalibrationConfig(samples=4)})
    expected = tree(build(own, tmp_path / "own").out)
    taken = tree(built.out)
    assert {
        name: taken[name] == expected[name] for name in expected if name not in ("manifest.json", "build.yaml")
    } == {name: True for name in expected if name not in ("manifest.json", "build.yaml")}
    assert "--calibrated whole" in built.manifest.command
    scales = "scales.safetensors"
    assert (built.out / "calibration" / scales).samefile(whole / scales), "linked, not copied"
    assert build(with_calibration(tiny_config, whole), tmp_path / "taken").ran == ()


def test_a_calibration_of_another_precision_or_recipe_is_refused(
    tiny_config: BuildConfig, whole: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="another precision") as caught:
        build(with_calibration(tiny_config, whole, "int4"), tmp_path / "out")
    assert (caught.value.found, caught.value.where) == ("precision int4", f"--calibrated {whole}")
    with pytest.raises(UsageError, match="another recipe"):
        build(with_calibration(tiny_config, whole, recipe="fp8-kv"), tmp_path / "out")
    with pytest.raises(BundleError, match="no calibration here"):
        build(with_calibration(tiny_config, tmp_path / "nowhere"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_calibration_by_another_image_policy_is_refused_with_both_named(
    tiny_model: Path, tiny_config: BuildConfig, whole: Path, tmp_path: Path
) -> None:
    assert read_stats(whole).image_policy == "as_displayed"
    with pytest.raises(UsageError, match="another policy") as caught:
        build(with_calibration(tiny_config, whole, image_policy="published"), tmp_path / "out")
    assert (caught.value.expected, caught.value.found) == ("image_policy published", "image_policy as_displayed")
    assert caught.value.fix is not None
    assert "build with --image-policy as_displayed" in caught.value.fix
    assert not (tmp_path / "out").exists()
    assert (
        calibrate(
            tiny_model,
            "--precision",
            "fp8",
            "--samples",
            4,
            "--image-policy",
            "published",
            "-o",
            tmp_path / "published",
        )
        == 0
    )
    assert read_stats(tmp_path / "published").image_policy == "published"
    with pytest.raises(UsageError, match="another policy"):
        build(with_calibration(tiny_config, tmp_path / "published"), tmp_path / "out")


def test_a_calibration_of_another_checkpoint_is_refused_before_anything_is_written(
    tiny_model: Path, tiny_config: BuildConfig, whole: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    for path in tiny_model.iterdir():
        (other / path.name).write_bytes(path.read_bytes())
    weights = next(other.glob("*.safetensors"))
    tensors = load_file(weights)
    save_file({**tensors, "mlp1.3.bias": tensors["mlp1.3.bias"] + 1}, weights, {"format": "pt"})
    config = with_calibration(tiny_config.model_copy(update={"model": str(other)}), whole)
    with pytest.raises(BundleError, match="another checkpoint"):
        build(config, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_damaged_calibration_is_named_and_not_taken_over(
    tiny_config: BuildConfig, whole: Path, tmp_path: Path, tree: Tree
) -> None:
    damaged = tmp_path / "damaged"
    for name, content in tree(whole).items():
        (damaged / name).parent.mkdir(parents=True, exist_ok=True)
        (damaged / name).write_bytes(content)
    scales = load_file(damaged / "scales.safetensors")
    scales["mlp1.1.input_scale"].fill_(float("nan"))
    save_file(scales, damaged / "scales.safetensors")
    with pytest.raises(BundleError, match=r"mlp1\.1") as caught:
        build(with_calibration(tiny_config, damaged), tmp_path / "out")
    assert f"--calibrated {damaged}" in str(caught.value.fix)
    (damaged / "stats.json").write_text("{")
    with pytest.raises(BundleError, match=r"stats\.json") as caught:
        build(with_calibration(tiny_config, damaged), tmp_path / "out")
    assert f"--calibrated {damaged}" in str(caught.value.fix)
    assert not (tmp_path / "out" / CALIBRATION).exists()


def test_a_calibration_that_does_not_fit_into_memory_is_refused_before_weights_are_read(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(calibration_cost, "available_bytes", lambda: 1000)
    assert calibrate(tiny_model, "--precision", "fp8", "--samples", 4, "-o", tmp_path / "out") == 4
    assert "The calibration does not fit into memory." in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_what_is_finished_is_up_to_date(
    tiny_model: Path, whole: Path, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A whole calibration, a shard, and a merge, each run again into its folder."""
    options = (tiny_model, "--precision", "fp8", "--samples", 4)
    assert calibrate(tiny_model, "--merge", shards, "-o", tmp_path / "merged") == 0
    assert "up to date" not in capsys.readouterr().out
    again = (
        ((*options, "-o", whole), "calibration"),
        ((*options, "--shard", "1/3", "-o", shards / "1"), "shard 1/3"),
        ((tiny_model, "--merge", shards, "-o", tmp_path / "merged"), "merge"),
    )
    for arguments, stage in again:
        assert calibrate(*arguments) == 0
        printed = capsys.readouterr()
        assert printed.err == f"[1/1] {stage}: up to date\n"
        assert f"{arguments[-1]}: up to date, " in printed.out
    assert calibrate(*options, "-o", whole, "--format", "json") == 0
    assert json.loads(capsys.readouterr().out)["up_to_date"] is True


@pytest.mark.parametrize(
    ("options", "found"),
    [
        (("--precision", "int8", "--samples", 4), "another finished calibration"),
        (("--precision", "fp8", "--samples", 3), "another finished calibration"),
        (("--precision", "fp8", "--samples", 4, "--shard", "2/3"), "another shard of a calibration"),
        (("--precision", "int8", "--samples", 4, "--shard", "1/3"), "another shard of a calibration"),
    ],
)
def test_another_finished_calibration_is_refused_before_a_stage_is_announced(
    tiny_model: Path,
    whole: Path,
    shards: Path,
    options: tuple[object, ...],
    found: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(Progress, "stage", None)
    assert calibrate(tiny_model, *options, "-o", shards / "1" if "--shard" in options else whole) == 2
    assert f"found:    {found}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "file", "found"),
    [
        (("--precision", "fp8"), "manifest.json", "manifest.json"),
        (("--precision", "fp8", "--shards", "2"), "key.json", "another shard of a calibration"),
        (("--precision", "fp8", "--shard", "1/2"), "stats.json", "another finished calibration"),
        (("--budget", "kl=0.1"), "stats.json", "another finished calibration"),
    ],
)
def test_a_folder_of_something_else_is_refused_before_a_stage_is_announced(
    tiny_model: Path,
    tmp_path: Path,
    options: tuple[str, ...],
    file: str,
    found: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(Progress, "stage", None)
    (tmp_path / file).touch()
    assert calibrate(tiny_model, *options, "--samples", 2, "-o", tmp_path) == 2
    said = capsys.readouterr().err
    assert "The output folder is not empty" in said
    assert f"found:    {found}" in said
    assert "name a new one with -o" in said
