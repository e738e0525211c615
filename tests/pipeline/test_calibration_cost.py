"""What a calibration is estimated to take, against what it takes: on r1v-nano, in time of this process alone."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.config import BuildConfig, CalibrationConfig
from r1v_export.errors import CapabilityError
from r1v_export.pipeline import calibration_cost
from r1v_export.pipeline.calibration import calibration_set
from r1v_export.pipeline.calibration_cost import CalibrationCost, require_memory, response_bytes
from r1v_export.pipeline.calibration_samples import SampleSize, calibration_examples, sample_sizes
from r1v_export.pipeline.rates import measured_rates
from r1v_export.quantization.calibration.activations import Activations, SavePolicy
from r1v_export.quantization.calibration.blockwise_runner import CalibrationOptions
from r1v_export.quantization.calibration.calibrate import calibrate
from r1v_export.quantization.calibration.plan import CalibrationPlan
from r1v_export.quantization.recipe import load
from r1v_export.quantization.sizes import checkpoint_bytes

SAMPLES = 16


def cost_of(checkpoint: Checkpoint, recipe: str, config: BuildConfig) -> CalibrationCost:
    sizes = sample_sizes(config, checkpoint, calibration_examples(config, checkpoint))
    return calibration_cost.calibration_cost(config, checkpoint.spec, load(recipe), sizes, "float32")


@pytest.fixture(scope="module")
def nano() -> Checkpoint:
    return Checkpoint.open("r1v-nano")


@pytest.mark.parametrize("recipe", ["fp8", "int4-gptq", "int4-awq"])
def test_an_estimate_is_within_a_factor_of_the_truth(
    nano: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recipe: str
) -> None:
    calibration = CalibrationConfig(samples=SAMPLES, saved_share=1e9)
    config = BuildConfig(precision="int4", calibration=calibration)
    cost = cost_of(nano, recipe, config)
    estimated = cost.seconds(replace(measured_rates(), cores=1))
    written: list[int] = []
    advance = Activations.advance

    def weighed(store: Activations, *args: Any, **options: Any) -> None:
        advance(store, *args, **options)
        written.append(sum(path.stat().st_size for path in store.folder.glob("*.data")))

    monkeypatch.setattr(Activations, "advance", weighed)
    started = time.process_time()
    samples = calibration_set(config, nano, load(recipe), tmp_path / "resume")
    options = CalibrationOptions(saving=SavePolicy(share=1e9, soonest_s=0.0))
    calibrate(nano, load(recipe), samples, tmp_path / "out", options)
    seconds = time.process_time() - started
    assert seconds / 8 < estimated < 8 * seconds  # a busy machine costs time of the process too
    assert max(written) <= cost.scratch_bytes <= 2.5 * max(written)


def test_more_samples_and_slower_algorithms_take_longer(nano: Checkpoint) -> None:
    rates = measured_rates()
    few, many = (
        cost_of(nano, "fp8", BuildConfig(precision="fp8", calibration=CalibrationConfig(samples=count)))
        for count in (4, 64)
    )
    assert 4 * few.seconds(rates) < many.seconds(rates)
    spec = Checkpoint.open("r1v-nano").spec
    rounded, awq, gptq = (
        CalibrationCost(CalibrationPlan(spec, load(recipe)), [SampleSize(400, 1)], "float32", 1 << 30).seconds(rates)
        for recipe in ("int4-rtn", "int4-awq", "int4-gptq")
    )
    assert 2 * rounded < min(awq, gptq)


def test_error_carried_forward_takes_another_pass_and_a_block_in_float32(nano: Checkpoint) -> None:
    recipe, rates, sizes = load("int4-gptq"), measured_rates(), [SampleSize(400, 1)] * 64
    without, propagated = (
        CalibrationCost(CalibrationPlan(nano.spec, each), sizes, "bfloat16", 1 << 30)
        for each in (recipe, recipe.model_copy(update={"propagate_error": True}))
    )
    assert propagated.seconds(rates) > 1.2 * without.seconds(rates)
    assert propagated.memory_bytes > without.memory_bytes


def test_activations_beyond_the_limit_are_not_held(nano: Checkpoint) -> None:
    config = BuildConfig(precision="fp8")
    small = config.model_copy(update={"calibration": CalibrationConfig(activation_memory="1MB")})
    held, spilled = cost_of(nano, "fp8", config), cost_of(nano, "fp8", small)
    most = cost_of(nano, "fp8", BuildConfig(calibration=CalibrationConfig(saved_share=1e9)))
    largest = most.scratch_bytes / (1 + 1 / 128)
    assert largest > 10**6
    assert spilled.scratch_bytes == pytest.approx(held.scratch_bytes + 2 * (largest - 10**6), abs=2)
    assert held.memory_bytes - spilled.memory_bytes == pytest.approx(2 * largest / 1.25 - 10**6, abs=2)


def test_no_more_disk_is_planned_for_saved_samples_than_their_share_of_the_model(nano: Checkpoint) -> None:
    share, none = (
        cost_of(nano, "fp8", BuildConfig(calibration=CalibrationConfig(saved_share=value))) for value in (0.02, 0.0)
    )
    model_bytes = checkpoint_bytes(nano.spec, share.plan.schemes, "bfloat16")
    assert share.scratch_bytes - none.scratch_bytes == pytest.approx(0.02 * model_bytes, abs=2)
    together = replace(share, plan=CalibrationPlan(nano.spec, load("fp8").model_copy(update={"propagate_error": True})))
    assert together.scratch_bytes < none.scratch_bytes + 2  # they would not all fit
    assert replace(together, saved_share=1e9).scratch_bytes > 100 * together.scratch_bytes


def test_what_does_not_fit_into_memory_is_refused_with_its_cure(
    nano: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    cost = cost_of(nano, "int4-gptq", BuildConfig(precision="int4"))
    monkeypatch.setattr(calibration_cost, "available_bytes", lambda: cost.memory_bytes)
    require_memory([cost])
    monkeypatch.setattr(calibration_cost, "available_bytes", lambda: cost.memory_bytes - 1)
    with pytest.raises(CapabilityError, match="does not fit into memory") as caught:
        require_memory([cost])
    assert "without Gram matrices" in str(caught.value.fix)


def test_responses_take_the_whole_model_in_float32(nano: Checkpoint) -> None:
    parameters = sum(tensor.nbytes // 2 for tensor in nano.tensors.values())
    assert response_bytes(nano.spec) > 4 * parameters
