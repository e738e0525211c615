"""Activations to quantize for: correlated, of very different size per channel, as those of real models are."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor


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
