"""AWQ, activation-aware weight quantization (Lin et al. 2023, arXiv:2306.00978).

A linear computes W x = (W diag(s)) (x / s). Quantizing W diag(s) instead of W protects the weights of channels whose
activations are large. As in the paper

    s = mean|x| ^ alpha,   alpha = argmin over a grid of  E || Q(W diag(s)) diag(s)^-1 x - W x ||^2

The expectation is computed exactly and without activations: with D = Q(W diag(s)) diag(s)^-1 - W and the Gram matrix
H = sum x x^T, it is tr(D H D^T) / N. alpha = 0 is s = 1: the search never does worse than rounding to nearest.
x / s is computed by the layer that produces x (`groups.SmoothLayer`), so nothing is added at run time.
Shape letters: O output features, I input features.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from r1v_export.quantization.algorithms.rtn import output_error
from r1v_export.quantization.number_formats import WeightType
from r1v_export.quantization.quant_params import QuantParams

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
    candidates = [scale_of(mean_I, index / grid) for index in range(grid + 1)]
    losses = torch.stack([_loss(rows_OI, scale_I, gram_II, kind, group_size) for scale_I in candidates])
    return candidates[int(losses.argmin())]


def scale_of(mean_I: Tensor, alpha: float) -> Tensor:
    """mean^alpha, normalized so that the largest and the smallest scale multiply to 1."""
    largest = mean_I.max()
    if largest == 0:
        return torch.ones_like(mean_I)
    scale_I = (mean_I / largest).clamp(min=_SMALLEST) ** alpha
    return scale_I / (scale_I.max() * scale_I.min()).sqrt()


def _loss(rows_OI: Tensor, scale_I: Tensor, gram_II: Tensor, kind: WeightType, group_size: int | None) -> Tensor:
    scaled_OI = rows_OI * scale_I
    quantized_OI = QuantParams.from_weight(scaled_OI, kind, group_size).quantize_dequantize(scaled_OI) / scale_I
    return output_error(rows_OI, quantized_OI, gram_II)
