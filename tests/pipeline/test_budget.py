"""Builds within a budget: precisions chosen per module, reported and reproducible."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from r1v_export.build_file import load_config
from r1v_export.bundle import BUILD_CONFIG
from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.config import BuildConfig, CalibrationConfig
from r1v_export.errors import CapabilityError, UsageError
from r1v_export.pipeline import budget
from r1v_export.pipeline.budget import largest_mix
from r1v_export.pipeline.build import build, plan
from r1v_export.pipeline.calibrate import calibrate_alone
from r1v_export.pipeline.calibration import CALIBRATION, open_artifact
from r1v_export.pipeline.effort import resolved_calibration
from r1v_export.progress import Progress
from r1v_export.quantization.artifact.qweight_places import PLACES, placed_files
from r1v_export.quantization.mixed_precision.search import SENSITIVITY
from r1v_export.quantization.mixed_precision.sensitivity import FLOAT, SensitivityTable, read_table
from r1v_export.quantization.sizes import checkpoint_bytes

FEW = CalibrationConfig(samples=2)
SIZE = "size=2500kB"
"""Between the tiny model in int4 and in fp8: some modules have to be the one, some may be the other."""


ROTARY_BYTES = 150_000
"""A table of the decoder's graph that is no weight and that no plan counts: of a large model it is nothing."""


def within(config: BuildConfig, budget: str, **changes: object) -> BuildConfig:
    return BuildConfig.model_validate(
        {**config.model_dump(exclude={"precision"}), "budget": budget, "calibration": FEW, **changes}
    )


@pytest.fixture(scope="module")
def bundle(tiny_config: BuildConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Not to be written to."""
    return build(within(tiny_config, SIZE), tmp_path_factory.mktemp("budget") / "bundle").out


@pytest.fixture(scope="module")
def table(bundle: Path) -> SensitivityTable:
    return read_table(bundle / CALIBRATION / SENSITIVITY)


def test_the_bundle_holds_what_was_measured_and_what_was_chosen(bundle: Path, table: SensitivityTable) -> None:
    selection = table.selection
    assert selection is not None
    assert selection.budget == "size=2500000B"
    assert set(selection.precisions) == {option.module for option in table.options}
    assert {option.precision for option in table.options} == {FLOAT, "fp8", "int4"}
    assert selection.kl is not None
    sizes = {(option.module, option.precision): option.size_bytes for option in table.options}
    assert selection.size_bytes == table.fixed_bytes + sum(sizes[chosen] for chosen in selection.precisions.items())
    assert selection.size_bytes <= 2_500_000


def test_a_size_that_no_precision_reaches_is_refused_before_anything_is_measured(
    tiny_config: BuildConfig, tmp_path: Path
) -> None:
    for run in (build, plan):
        with pytest.raises(UsageError, match="smaller than the model in its smallest precisions"):
            run(within(tiny_config, "size=20B"), tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_the_artifact_quantizes_what_was_chosen(bundle: Path, tiny_model: Path, table: SensitivityTable) -> None:
    artifact = open_artifact(bundle, Checkpoint.open(tiny_model))
    assert artifact is not None
    assert table.selection is not None
    for module, precision in table.selection.precisions.items():
        scheme = artifact.schemes.get(module)
        assert precision == (scheme.weights.type if scheme else FLOAT)


def test_its_build_file_and_its_recipe_make_the_same_calibration(
    bundle: Path, tiny_model: Path, tmp_path: Path, tree: Callable[[Path], dict[str, bytes]]
) -> None:
    config = load_config(bundle / BUILD_CONFIG, {"model": str(tiny_model)})
    assert config.budget == SIZE
    placed = {f"qweight/{path.name}": path.read_bytes() for path in placed_files(bundle / CALIBRATION)}
    expected = {name: content for name, content in tree(bundle / CALIBRATION).items() if name != PLACES} | placed
    assert tree(calibrate_alone(config, tmp_path / "again", Progress(quiet=True)).out) == expected
    assert [path.name for path in tmp_path.iterdir()] == ["again"]
    with pytest.raises(UsageError, match="not empty"):
        calibrate_alone(config, tmp_path / "again", Progress(quiet=True))
    by_recipe = config.model_copy(update={"budget": None, "recipe": str(bundle / CALIBRATION / "recipe.yaml")})
    found = tree(calibrate_alone(by_recipe, tmp_path / "by-recipe", Progress(quiet=True)).out)
    assert found == {name: content for name, content in expected.items() if name != SENSITIVITY}


def test_a_precision_bounds_what_a_budget_may_take(tiny_config: BuildConfig, tmp_path: Path) -> None:
    config = within(tiny_config, "kl=10", precision="fp8")
    table = read_table(calibrate_alone(config, tmp_path / "out", Progress(quiet=True)).out / SENSITIVITY)
    assert {option.precision for option in table.options} == {FLOAT, "fp8"}
    assert "--budget kl=10" in config.command


@pytest.mark.parametrize(
    "budget", ["", "20GB", "kl", "kl=", "kl=-1", "kl=0", "kl=nan", "size=20XB", "kl=0.02MB", "size=1e9999"]
)
def test_a_budget_that_says_nothing_is_refused_before_any_work(
    tiny_config: BuildConfig, tmp_path: Path, budget: str
) -> None:
    with pytest.raises(UsageError, match=r"Invalid --budget|must be above zero"):
        build(within(tiny_config, budget), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_budget_that_no_mix_keeps_is_reported_with_the_smallest_that_does(
    tiny_config: BuildConfig, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="smaller than the model") as caught:
        build(within(tiny_config, "size=1MB"), tmp_path / "out")
    assert caught.value.fix is not None
    assert "--budget size=" in caught.value.fix


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"budget": "kl=1", "precision": "fp16"}, "a budget is for quantized precisions"),
        ({"budget": "kl=1", "recipe": "fp8"}, "does not go with a recipe"),
        ({"budget": "kl=1", "calibration": {"artifact": "x"}}, "does not go with a finished calibration"),
        ({"calibration": {"artifact": "x"}, "precision": "fp32"}, "a finished calibration is for quantized precisions"),
    ],
)
def test_two_ways_to_quantize_exclude_each_other(fields: dict[str, object], complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        load_config(None, fields)


def test_a_budget_of_size_is_planned_with_the_largest_bundle_that_it_allows(
    tiny_config: BuildConfig, bundle: Path, tmp_path: Path
) -> None:
    """All weights in float32, next to all of them in a byte, were planned for any budget."""
    planned = sum(stage.size_bytes for stage in plan(within(tiny_config, SIZE), tmp_path / "out"))
    built = sum(path.stat().st_size for path in bundle.rglob("*") if path.suffix in (".data", ".safetensors"))
    in_float = sum(stage.size_bytes for stage in plan(within(tiny_config, "kl=0.1"), tmp_path / "out"))
    assert built - ROTARY_BYTES <= planned < 0.7 * in_float
    checkpoint = Checkpoint.open(tiny_config.model)
    mix = largest_mix(resolved_calibration(within(tiny_config, SIZE), checkpoint), checkpoint)
    assert 0.8 * 2.5e6 < checkpoint_bytes(checkpoint.spec, mix, "bfloat16") <= 2.5e6


def test_a_divergence_that_cannot_be_measured_here_is_refused_before_anything_is_calibrated(
    tiny_config: BuildConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(budget, "whole_model_fits", lambda checkpoint: False)
    stages = {stage.name: stage for stage in plan(within(tiny_config, "kl=0.1"), tmp_path / "out")}
    assert "too large for this machine to measure divergences" in str(stages["calibration"].obstacle)
    with pytest.raises(CapabilityError, match="measure divergences"):
        build(within(tiny_config, "kl=0.1"), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert not any(stage.obstacle for stage in plan(within(tiny_config, SIZE), tmp_path / "out"))
