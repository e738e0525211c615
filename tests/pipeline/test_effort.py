"""What `--effort` stands for, and when it is chosen."""

from __future__ import annotations

import pytest

from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.checkpoint.presets import PRESETS as MODELS
from r1v_export.checkpoint.synth import synthesize
from r1v_export.config import BuildConfig, CalibrationConfig
from r1v_export.model_spec import ModelSpec
from r1v_export.pipeline.calibration import chosen_recipe
from r1v_export.pipeline.effort import SAMPLES, effort_of, with_effort


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> ModelSpec:
    assert "r1v3-38b" in MODELS
    folder = synthesize(tmp_path_factory.mktemp("large") / "model", preset="r1v3-38b", weights="empty")
    return Checkpoint.open(str(folder)).spec


@pytest.fixture(scope="module")
def small() -> ModelSpec:
    return Checkpoint.open("r1v-nano").spec


def recipe_of(config: BuildConfig, spec: ModelSpec) -> str:
    recipe = chosen_recipe(with_effort(config, spec))
    assert recipe is not None
    return recipe.name


def test_a_large_model_on_a_cpu_is_calibrated_quickly(small: ModelSpec, large: ModelSpec) -> None:
    config = BuildConfig(precision="int4")
    assert effort_of(config, large) == "quick"
    assert effort_of(config, small) == "full"
    assert effort_of(config.model_copy(update={"device": "cuda"}), large) == "full"
    assert recipe_of(config, large) == "int4-rtn"
    assert recipe_of(config, small) == "int4-gptq"
    assert with_effort(config, large).calibration.samples == SAMPLES["quick"]


def test_what_the_user_says_wins(small: ModelSpec, large: ModelSpec) -> None:
    full = BuildConfig(precision="int4", calibration=CalibrationConfig(effort="full", samples=7))
    assert recipe_of(full, large) == "int4-gptq"
    assert with_effort(full, large).calibration.samples == 7
    quick = BuildConfig(precision="int4", recipe="int4-awq", calibration=CalibrationConfig(effort="quick"))
    assert recipe_of(quick, small) == "int4-awq"
    assert with_effort(quick, small).calibration.samples == SAMPLES["quick"]


def test_the_command_repeats_what_was_said() -> None:
    calibration = CalibrationConfig(effort="quick", samples=9, matmul_precision="float32", activation_memory="2GB")
    command = BuildConfig(precision="fp8", calibration=calibration).command
    assert "--effort quick --samples 9 --matmul-precision float32 --activation-memory 2GB" in command
    assert "--effort" not in BuildConfig(precision="fp8").command
    for share in (0.0, 0.5):
        calibration = CalibrationConfig(saved_share=share)
        assert f"--saved-share {share}" in BuildConfig(precision="fp8", calibration=calibration).command
