"""A sensitivity table of a small model, which takes seconds to measure."""

from __future__ import annotations

import pytest

from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.quantization.artifact.artifact import Artifact
from r1v_export.quantization.calibration.calibrate import calibrate
from r1v_export.quantization.mixed_precision.search import candidates
from r1v_export.quantization.mixed_precision.sensitivity import SensitivityTable, measure
from tests.quantization.calibration_cases import small_set

SAMPLES = 1


@pytest.fixture(scope="session")
def artifacts(synth_checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    folder, found = tmp_path_factory.mktemp("uniform"), {}
    for precision, recipe in candidates(synth_checkpoint).items():
        calibrate(synth_checkpoint, recipe, small_set(synth_checkpoint, SAMPLES), folder / precision)
        found[precision] = Artifact.open(folder / precision, synth_checkpoint)
    return found


@pytest.fixture(scope="session")
def table(synth_checkpoint: Checkpoint, artifacts: dict[str, Artifact]) -> SensitivityTable:
    return measure(synth_checkpoint, small_set(synth_checkpoint, SAMPLES), artifacts)
