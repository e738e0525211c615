"""Range estimators: from activation statistics to the largest magnitude that a static scale represents.

    absmax      the largest magnitude: nothing is clipped
    percentile  the magnitude below which so many per cent of all values lie
    mse         the threshold with the least mean squared error of quantized against original values
    entropy     the threshold with the least Kullback-Leibler divergence of the distribution after quantization from the
                original one (Migacz 2017, "8-bit inference with TensorRT")

The last two try thresholds down to 1/64 of the largest magnitude. They see the histogram, whose bins are wide against
the steps of int8 near the threshold, so each bin counts as many points evenly spread over it.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from r1v_export.quantization.number_formats import InputType
from r1v_export.quantization.quantized_linear import quantize_dequantize, scale_for
from r1v_export.quantization.statistics.activation_statistics import ActivationStatistics, bin_edges
from r1v_export.strict import StrictModel

POINTS_PER_BIN = 16
CANDIDATES = 96
"""Thresholds that are tried, 16 to each halving."""


class Observer(StrictModel):
    """How the range of a static input scale is chosen: a recipe's `observer`."""

    kind: Literal["absmax", "percentile", "mse", "entropy"] = "absmax"
    percentile: float = Field(default=99.99, gt=50, le=100)

    @property
    def reads_histogram(self) -> bool:
        """Whether the largest magnitudes alone do not say the range."""
        return self.kind != "absmax"


def estimate_range(statistics: ActivationStatistics, observer: Observer, kind: InputType) -> float:
    """The magnitude that the largest quantized value represents; 0 if all activations are 0."""
    absmax = statistics.absmax
    if not observer.reads_histogram or absmax == 0:
        return absmax
    if observer.kind == "percentile":
        return min(absmax, _percentile(statistics.histogram, observer.percentile))
    loss = {"mse": _mean_square, "entropy": _divergence}[observer.kind]
    points, mass, width = _points(statistics.histogram, absmax)
    candidates = [absmax * 2 ** (-index / 16) for index in range(CANDIDATES)]
    losses = [loss(points, mass, width, candidate, kind) for candidate in candidates]
    return candidates[losses.index(min(losses))]


def _percentile(histogram: Tensor, percentile: float) -> float:
    """Linear between a bin's edges."""
    edges, cumulative = bin_edges(), histogram.double().cumsum(0)
    wanted = cumulative[-1] * percentile / 100
    index = min(int(torch.searchsorted(cumulative, wanted)), len(histogram) - 1)
    share = 1 - (cumulative[index] - wanted) / histogram[index].clamp(min=1)
    return float(edges[index] + share * (edges[index + 1] - edges[index]))


def _points(histogram: Tensor, absmax: float) -> tuple[Tensor, Tensor, Tensor]:
    """Magnitudes, how much of the distribution each stands for, and the width of the interval it stands for."""
    edges = bin_edges()
    used = histogram.nonzero().flatten()
    low, high = edges[used], edges[used + 1].clamp(max=absmax)
    width = (high - low).clamp(min=0)[:, None].expand(-1, POINTS_PER_BIN) / POINTS_PER_BIN
    offsets = (torch.arange(POINTS_PER_BIN) + 0.5) * width
    mass = (histogram[used].double() / histogram.sum() / POINTS_PER_BIN)[:, None].expand(-1, POINTS_PER_BIN)
    return (low[:, None] + offsets).flatten(), mass.flatten(), width.flatten()


def _mean_square(points: Tensor, mass: Tensor, width: Tensor, candidate: float, kind: InputType) -> float:
    error = (
        quantize_dequantize(points, scale_for(torch.tensor(candidate, dtype=torch.float64), kind).double(), kind)
        - points
    )
    return float((mass * error.square()).sum())


def _divergence(points: Tensor, mass: Tensor, width: Tensor, candidate: float, kind: InputType) -> float:
    """KL(P || Q) below the threshold: P has the clipped mass added to its last interval; Q has the mass of each
    quantized value spread evenly over the magnitudes that round to it."""
    inside = points <= candidate
    if not inside.any():
        return float("inf")
    p, width = mass[inside].clone(), width[inside]
    scale = scale_for(torch.tensor(candidate, dtype=torch.float64), kind).double()
    _, value_index = quantize_dequantize(points[inside], scale, kind).unique(return_inverse=True)
    mass_of_value = torch.zeros(int(value_index.max()) + 1, dtype=torch.float64).index_add(0, value_index, p)
    width_of_value = torch.zeros_like(mass_of_value).index_add(0, value_index, width)
    q = mass_of_value[value_index] * width / width_of_value[value_index]
    p[-1] += mass[~inside].sum()
    q = q / q.sum()
    return float((p * (p / q).log()).sum())
