"""The plan of a search within a budget, against what the search computes."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.config import BuildConfig
from r1v_export.pipeline.calibration_samples import SampleSize
from r1v_export.pipeline.planned_calibration import PlannedCalibration
from r1v_export.pipeline.rates import measured_rates
from r1v_export.pipeline.search_cost import SearchCost
from r1v_export.quantization.artifact.artifact import Artifact
from r1v_export.quantization.calibration.blocks import blocks
from r1v_export.quantization.calibration.calibrate import calibrate
from r1v_export.quantization.calibration.plan import CalibrationPlan
from r1v_export.quantization.mixed_precision import sensitivity
from r1v_export.quantization.mixed_precision.search import candidates
from tests.quantization.calibration_cases import small_set

SAMPLES = 1


@pytest.mark.parametrize("with_kl", [False, True])
def test_blocks_run_as_often_as_planned(
    synth_checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, with_kl: bool
) -> None:
    (recipe,) = candidates(synth_checkpoint, "int8").values()
    calibration = small_set(synth_checkpoint, SAMPLES)
    calibrate(synth_checkpoint, recipe, calibration, tmp_path / "int8")
    ran, forward = Counter[str](), sensitivity._forward

    def counted(block, *arguments):
        ran[block.name] += 1
        return forward(block, *arguments)

    monkeypatch.setattr(sensitivity, "_forward", counted)
    artifacts = {"int8": Artifact.open(tmp_path / "int8", synth_checkpoint)}
    sensitivity.measure(synth_checkpoint, calibration, artifacts, with_kl=with_kl)
    cost = SearchCost([CalibrationPlan(synth_checkpoint.spec, recipe)], [SampleSize(300, 1)], with_kl)
    assert cost.passes == [ran[block.name] for block in blocks(synth_checkpoint.spec)]


def test_a_budget_takes_longer_than_what_it_chooses_between(synth_checkpoint: Checkpoint) -> None:
    config = BuildConfig(precision="int4", budget="kl=0.5", calibration={"samples": 1})
    planned = PlannedCalibration(config, config, synth_checkpoint, None)
    search, rates = planned._search, measured_rates()
    blind = replace(search, with_kl=False)
    assert search.seconds(rates) > 2 * blind.seconds(rates)
    assert planned.seconds() > search.seconds(rates)
    assert search.memory_bytes > blind.memory_bytes
    assert planned.needs.memory_bytes >= search.memory_bytes
