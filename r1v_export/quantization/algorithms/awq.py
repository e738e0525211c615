"""AWQ, activation-aware weight quantization (Lin et al. 2023, arXiv:2306.00978).

A linear computes W x = (W diag(s)) (x / s). Quantizing W diag(s) instead of W protects the weights of channels whose
activations are large. As in the paper

    s = mean|x| ^ alpha,   alpha = argmin over a grid of  E || Q(W diag(s)) diag(s)^-1 x - W x ||^2

The expectation is computed exactly and without activations: with D = Q(W diag(s)) diag(s)^-1 - W and the Gram matrix
H = sum x x^T, it is tr(D H D^T) / N. alpha = 0 is s = 1: the search never does worse than rounding to nearest.
x / s is computed by the layer that produces x (`groups.SmoothLayer`), so nothing is added at run time.
Shape letters: O output features, I input features, C candidates for the scale.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from r1v_export.quantization.algorithms.output_error import output_errors
from r1v_export.quantization.number_formats import WeightType
from r1v_export.quantization.quant_params import QuantParams

_ROWS_AT_ONCE = 64
_STANDARD_ERRORS = 4
"""After every so many rows, an alpha whose rows cost so many standard errors more than those of the best alpha is given
up: a race (Maron and Moore 1994, "Hoeffding Races"). One in 30 000 that is no worse is given up by chance."""

SEARCH_ROWS = 512
"""Output rows that the search evaluates, evenly spread over the linears: the loss is a sum over rows, and the best
alpha of this many is that of all; all of them would cost as much as the forward pass for each alpha."""

_SMALLEST = 1e-4
"""Mean magnitudes count as at least this fraction of the largest one, so that dead channels get no absurd scales."""


def search_scale(
    weights: Sequence[Tensor], gram_II: Tensor, mean_I: Tensor, kind: WeightType, group_size: int | None, grid: int = 20
) -> Tensor:
    """The scale s [I] that is best for all linears that read one tensor.

    Args:
        weights: their weights, [O, I] float32 each.
        gram_II: sum of x x^T over tokens.
        mean_I: mean |x| of each channel. Channels that must share a scale have equal values here.
        grid: steps of alpha between 0 and 1.
    """
    step = -(-sum(len(weight) for weight in weights) // SEARCH_ROWS)
    rows_OI = torch.cat([weight[::step] for weight in weights])
    scales_CI = torch.stack([scale_of(mean_I, index / grid) for index in range(grid + 1)])
    turns = -(-len(rows_OI) // _ROWS_AT_ONCE)
    losses_CO = rows_OI.new_empty(len(scales_CI), 0)
    for turn in range(turns):  # each of them has rows of every linear
        added_CO = _losses(rows_OI[turn::turns], scales_CI, gram_II, kind, group_size)
        losses_CO = torch.cat((losses_CO, added_CO), dim=1)
        left_C = ~_is_worse(losses_CO)
        losses_CO, scales_CI = losses_CO[left_C], scales_CI[left_C]
    best_I: Tensor = scales_CI[int(losses_CO.sum(1).argmin())]
    return best_I


def _is_worse(losses_CO: Tensor) -> Tensor:
    """Which candidates lose, beyond chance, to the one that is best for the rows so far: [C]."""
    if losses_CO.shape[1] < _ROWS_AT_ONCE // 2:
        return torch.zeros_like(losses_CO[:, 0], dtype=torch.bool)
    more_CO = losses_CO - losses_CO[losses_CO.sum(1).argmin()]
    standard_error_C = more_CO.std(1) / more_CO.shape[1] ** 0.5
    worse_C: Tensor = more_CO.mean(1) > _STANDARD_ERRORS * standard_error_C
    return worse_C


def scale_of(mean_I: Tensor, alpha: float) -> Tensor:
    """mean^alpha, normalized so that the largest and the smallest scale multiply to 1."""
    largest = mean_I.max()
    if largest == 0:
        return torch.ones_like(mean_I)
    scale_I = (mean_I / largest).clamp(min=_SMALLEST) ** alpha
    return scale_I / (scale_I.max() * scale_I.min()).sqrt()


def _losses(rows_OI: Tensor, scales_CI: Tensor, gram_II: Tensor, kind: WeightType, group_size: int | None) -> Tensor:
    """The loss of some rows with each of C scales [C, I]: [C, O]. One product for all of them."""
    scaled_CxOI = (rows_OI * scales_CI[:, None]).flatten(0, 1)
    error_CxOI = QuantParams.from_weight(scaled_CxOI, kind, group_size).quantize_dequantize(scaled_CxOI)
    error_CxOI.unflatten(0, (len(scales_CI), -1)).div_(scales_CI[:, None]).sub_(rows_OI)
    losses_CO: Tensor = output_errors(error_CxOI, gram_II).unflatten(0, (len(scales_CI), -1))
    return losses_CO
