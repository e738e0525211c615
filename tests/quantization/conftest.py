"""A small model with a sample, and activations that are correlated and differ in size per channel, as real ones do."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.quantization.calibration.dataset import CalibrationSample
from r1v_export.reference.model import Model, load
from tests.quantization.calibration_cases import small_set


@dataclass(frozen=True)
class Case:
    """A linear and the activations that enter it: weight [out, in], x [tokens, in], gram = x^T x."""

    weight: Tensor
    x: Tensor

    @property
    def gram(self) -> Tensor:
        return self.x.T @ self.x

    def error(self, quantized: Tensor) -> float:
        """Summed squared error of the outputs, computed from the outputs themselves."""
        return float((self.x @ (quantized - self.weight).T).square().sum())


def make_case(out_features: int = 96, in_features: int = 128, tokens: int = 1024, seed: int = 0) -> Case:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    mix = normal(in_features, in_features) / in_features**0.5
    x = (normal(tokens, in_features) @ mix + 0.3 * normal(tokens, in_features)) * normal(in_features).exp()
    return Case(normal(out_features, in_features) * 0.05, x)


@pytest.fixture
def case() -> Case:
    return make_case()


@pytest.fixture(scope="module")
def sample(synth_checkpoint: Checkpoint) -> CalibrationSample:
    return small_set(synth_checkpoint, 1).samples[0]


@pytest.fixture(scope="module")
def model(synth_checkpoint: Checkpoint) -> Model:
    return load(synth_checkpoint)
