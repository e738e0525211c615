"""A build's calibration before it runs: what the effort decided is said, and what does not fit is an obstacle."""

from __future__ import annotations

from dataclasses import replace

import pytest

from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.config import BuildConfig, CalibrationConfig
from r1v_export.errors import CapabilityError, InputError
from r1v_export.pipeline import calibration_cost, effort
from r1v_export.pipeline.calibration import chosen_recipe
from r1v_export.pipeline.effort import resolved_calibration
from r1v_export.pipeline.planned_calibration import PlannedCalibration


def planned(config: BuildConfig) -> PlannedCalibration:
    checkpoint = Checkpoint.open("r1v-nano")
    resolved = resolved_calibration(config, checkpoint)
    return PlannedCalibration(config, resolved, checkpoint, chosen_recipe(resolved))


def test_a_quick_calibration_that_nobody_asked_for_says_what_a_full_one_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    config = BuildConfig(precision="int4")
    assert planned(config).needs.note == ""
    monkeypatch.setattr(effort, "QUICK_FROM_PARAMETERS", 1000)
    note = planned(config).needs.note
    assert note.startswith("quick (int4-rtn from weights alone)")
    assert "--effort full (int4-gptq on 128 samples) takes about" in note
    asked = config.model_copy(update={"calibration": CalibrationConfig(effort="quick")})
    assert planned(asked).needs.note == ""
    named = config.model_copy(update={"recipe": "int4-rtn"})
    assert planned(named).needs.note == "", "with any effort it is the same"


def test_what_decides_the_numbers_is_in_the_settings() -> None:
    full = planned(BuildConfig(precision="fp8")).settings
    quick = planned(BuildConfig(precision="fp8", calibration=CalibrationConfig(effort="quick"))).settings
    rounded = planned(BuildConfig(precision="fp8", calibration=CalibrationConfig(matmul_precision="bfloat16"))).settings
    held = planned(
        BuildConfig(precision="fp8", calibration=CalibrationConfig(activation_memory="1MB", saved_share=1.0))
    )
    held = held.settings
    assert held == full
    assert len({str(settings) for settings in (full, quick, rounded)}) == 3


def test_what_counts_on_a_cluster_is_its_smallest_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    config = BuildConfig(precision="int4")
    small = replace(planned(config), worker_bytes=1000).needs.obstacle
    assert small is not None
    assert small.found == "1.0 kB on the cluster's smallest worker"
    monkeypatch.setattr(calibration_cost, "available_bytes", lambda: 1000)
    assert replace(planned(config), worker_bytes=1 << 40).needs.obstacle is None


def test_more_shards_than_samples_are_refused_before_the_build_begins() -> None:
    calibration = CalibrationConfig(samples=3, shards=4)
    with pytest.raises(InputError, match="more shards than calibration samples"):
        _ = planned(BuildConfig(precision="fp8", calibration=calibration)).needs


def test_too_little_memory_is_an_obstacle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration_cost, "available_bytes", lambda: 1000)
    needs = planned(BuildConfig(precision="int4")).needs
    assert isinstance(needs.obstacle, CapabilityError)
    assert needs.memory_bytes > 1000
