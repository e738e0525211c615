"""Which samples a build calibrates on, and how large the plan takes them to be."""

from __future__ import annotations

from pathlib import Path

import pytest

from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.config import BuildConfig, CalibrationConfig, Effort
from r1v_export.pipeline.calibration import calibration_set
from r1v_export.pipeline.calibration_samples import calibration_examples, sample_sizes
from r1v_export.pipeline.effort import SAMPLES
from r1v_export.quantization.recipe import load


def config_of(effort: Effort, samples: int) -> BuildConfig:
    return BuildConfig(precision="fp8", calibration=CalibrationConfig(effort=effort, samples=samples))


@pytest.fixture(scope="module")
def nano() -> Checkpoint:
    return Checkpoint.open("r1v-nano")


def test_a_full_calibration_takes_the_first_samples(nano: Checkpoint) -> None:
    names = [example.name for example in calibration_examples(config_of("full", 5), nano)]
    assert names == [f"built-in {index}" for index in range(5)]


@pytest.fixture
def full_takes_20(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SAMPLES, "full", 20)


@pytest.mark.usefixtures("full_takes_20")
def test_a_quick_calibration_takes_the_shortest_of_those_of_a_full_one(nano: Checkpoint, tmp_path: Path) -> None:
    all_samples = calibration_set(config_of("full", 20), nano, load("fp8"), tmp_path / "resume").samples
    lengths = sorted((len(sample.token_ids), sample.index) for sample in all_samples)
    quick = calibration_set(config_of("quick", 5), nano, load("fp8"), tmp_path / "resume").samples
    assert [sample.name for sample in quick] == [f"built-in {index}" for _, index in lengths[:5]]


@pytest.mark.usefixtures("full_takes_20")
@pytest.mark.parametrize("samples", [20, 23])
def test_the_number_of_a_quick_calibration_is_the_users_and_so_are_the_samples(nano: Checkpoint, samples: int) -> None:
    """As many as a full one takes, or more, are the same samples, in another order."""
    names = {example.name for example in calibration_examples(config_of("quick", samples), nano)}
    assert names == {f"built-in {index}" for index in range(samples)}


@pytest.mark.usefixtures("full_takes_20")
@pytest.mark.parametrize("effort", ["full", "quick"])
def test_sizes_are_those_of_the_samples(nano: Checkpoint, tmp_path: Path, effort: Effort) -> None:
    config = config_of(effort, 6)
    samples = calibration_set(config, nano, load("fp8"), tmp_path / "resume").samples
    sizes = sample_sizes(config, nano, calibration_examples(config, nano))
    assert [(size.tokens, size.tiles) for size in sizes] == [(len(s.token_ids), s.tiles) for s in samples]
