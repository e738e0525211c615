"""SmoothQuant (Xiao et al. 2022, arXiv:2211.10438): the range of activations is moved into the weights, in part.

    W x = (W diag(s)) (x / s),   s_j = max|x_j| ^ alpha / max|W_j| ^ (1 - alpha)

x / s has smaller outliers, so one scale for the whole tensor loses less; the division by s goes into the norm before.
The paper stops there; here also rows of v_proj and up_proj take up scales, which their per-channel scales absorb
exactly.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_SMALLEST = 1e-5
"""Scales are at least this: a channel that is always zero, or that no weight reads, does not blow up."""


def smoothing_scale(weights: Sequence[Tensor], absmax_I: Tensor, alpha: float = 0.5) -> Tensor:
    """The scale s [in] of the linears that read one tensor.

    Args:
        weights: their weights, [out, in] float32 each.
        absmax_I: largest |x| of each channel.
        alpha: how much moves from the activations to the weights; 1 is all of it.
    """
    weight_absmax_I = torch.stack([weight.abs().amax(0) for weight in weights]).amax(0)
    scale_I = absmax_I**alpha / weight_absmax_I.clamp(min=_SMALLEST) ** (1 - alpha)
    return torch.where((absmax_I > 0) & (weight_absmax_I > 0), scale_I.clamp(min=_SMALLEST), 1.0)
