from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from r1v_export.quantization.quantized_linear import quantize_dequantize, scale_for
from r1v_export.quantization.statistics.activation_statistics import ActivationStatistics
from r1v_export.quantization.statistics.range_estimators import Observer, estimate_range


def heavy_tailed(count: int = 200_000) -> Tensor:
    """A normal distribution with one value in ten thousand forty times as large: what activations look like."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count // 64, 64, generator=generator)
    x.view(-1)[:: count // 20] *= 40
    return x


def observed(x: Tensor, kind: str, of: str = "int8", **options: float) -> float:
    return estimate_range(ActivationStatistics.from_activations(x), Observer(kind=kind, **options), of)


def mean_square(x: Tensor, at: float, kind: str) -> float:
    return float((quantize_dequantize(x, scale_for(torch.tensor(at), kind), kind) - x).square().mean())


def divergence(x: Tensor, at: float, bins: int = 8192, levels: int = 128) -> float:
    """TensorRT's int8 calibration as published: even bins, 128 levels, what is clipped added to the last bin."""
    largest = float(x.abs().max())
    counts = np.histogram(x.abs().numpy(), bins=bins, range=(0, largest))[0].astype(float)
    kept = max(levels, round(at / largest * bins))
    p = counts[:kept].copy()
    q = np.zeros(kept)
    for group in np.array_split(np.arange(kept), levels):
        q[group] = np.where(counts[group] > 0, counts[group].sum() / max(1, (counts[group] > 0).sum()), 0)
    p[-1] += counts[kept:].sum()
    q[-1] = max(q[-1], 1e-9)
    p, q = p / p.sum(), q / q.sum()
    return float((p[p > 0] * np.log(p[p > 0] / q[p > 0])).sum())


@pytest.mark.parametrize("kind", ["absmax", "percentile", "mse", "entropy"])
@pytest.mark.parametrize("of", ["int8", "fp8"])
def test_no_observer_leaves_the_observed_range(kind: str, of: str) -> None:
    x = heavy_tailed()
    assert 0 < observed(x, kind, of) <= float(x.abs().max())


def test_absmax_is_exact() -> None:
    x = heavy_tailed()
    assert observed(x, "absmax") == float(x.abs().max())


@pytest.mark.parametrize("percentile", [75.0, 99.0, 99.9])
def test_the_percentile_is_numpys_within_a_bin(percentile: float) -> None:
    x = heavy_tailed()
    expected = float(np.percentile(x.abs().numpy(), percentile))
    assert observed(x, "percentile", percentile=percentile) == pytest.approx(expected, rel=0.01)


def test_the_hundredth_percentile_is_absmax() -> None:
    x = heavy_tailed()
    assert observed(x, "percentile", percentile=100.0) == float(x.abs().max())


@pytest.mark.parametrize(("of", "tolerance"), [("int8", 1.02), ("fp8", 1.2)])
def test_the_mse_threshold_is_about_as_good_as_the_best_for_the_values_themselves(of: str, tolerance: float) -> None:
    """In fp8 the error is that of the twenty outliers, whose places between two quantized values no histogram knows."""
    x = heavy_tailed()
    absmax = float(x.abs().max())
    best = min(mean_square(x, absmax * 2 ** (-index / 16), of) for index in range(97))
    assert mean_square(x, observed(x, "mse", of), of) <= tolerance * best


def test_the_entropy_threshold_is_a_good_one_for_tensorrts_method() -> None:
    """Its divergence is nearly flat between the bulk of the distribution and its outliers, and steep outside."""
    x = heavy_tailed()
    found, absmax = observed(x, "entropy"), float(x.abs().max())
    assert divergence(x, found) < 0.2 * divergence(x, absmax)
    assert divergence(x, found) < 0.2 * divergence(x, found / 2)


def test_the_entropy_of_an_even_distribution_clips_next_to_nothing() -> None:
    x = torch.rand(1000, 64, generator=torch.Generator().manual_seed(0))
    assert observed(x, "entropy") > 0.9


@pytest.mark.parametrize("kind", ["absmax", "percentile", "mse", "entropy"])
def test_all_zero_activations_have_threshold_zero(kind: str) -> None:
    assert observed(torch.zeros(4, 8), kind) == 0


@pytest.mark.parametrize("kind", ["percentile", "mse", "entropy"])
def test_a_constant_is_represented(kind: str) -> None:
    x = torch.full((4, 8), 0.3)
    assert observed(x, kind) == pytest.approx(0.3, rel=0.02)
