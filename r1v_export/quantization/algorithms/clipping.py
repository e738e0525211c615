"""Where to clip weights: a scale that saturates the largest ones is finer for all others.

The search of AWQ (Lin et al. 2023, arXiv:2306.00978, `auto_clip` of its code), with the loss in closed form. Group g of
row o has the error d = Q(w) - w over its inputs and costs

    d H_gg d^T,   H_gg = the group's own block of H = sum x x^T

which is the squared error of the output that this group alone makes. Without H it is the squared error of the weights.
Shape letters: O output features, I input features, G groups, g inputs of a group.
"""

from __future__ import annotations

import torch
from torch import Tensor

from r1v_export.quantization.number_formats import WeightType
from r1v_export.quantization.quant_params import QuantParams

SHRINKS = tuple(1 - step / 20 for step in range(11))
"""Fractions of the full range that are tried, 1 to 0.5."""


_ROWS_AT_ONCE = 512
"""Rows whose losses are computed at a time: temporaries stay small."""


def clipped_params(
    weight_OI: Tensor, kind: WeightType, group_size: int | None, gram_II: Tensor | None = None
) -> QuantParams:
    """Parameters whose range, per row and group, is the best of SHRINKS times the full one."""
    blocks_Ggg = None if gram_II is None else _diagonal_blocks(gram_II, group_size or weight_OI.shape[1])
    parts = weight_OI.split(_ROWS_AT_ONCE)
    shrink_OG = torch.cat([_best_shrink(rows.float(), kind, group_size, blocks_Ggg) for rows in parts])
    return QuantParams.from_weight(weight_OI, kind, group_size, shrink_OG)


def _best_shrink(weight_OI: Tensor, kind: WeightType, group_size: int | None, blocks_Ggg: Tensor | None) -> Tensor:
    best_OG, best_loss_OG = None, None
    for shrink in SHRINKS:
        params = QuantParams.from_weight(weight_OI, kind, group_size, shrink)
        error_OGg = (params.quantize_dequantize(weight_OI) - weight_OI).unflatten(1, (params.scale.shape[1], -1))
        loss_OG = _loss(error_OGg, blocks_Ggg)
        if best_OG is None or best_loss_OG is None:
            best_OG, best_loss_OG = torch.ones_like(loss_OG), loss_OG
        better_OG = loss_OG < best_loss_OG
        best_OG = torch.where(better_OG, shrink, best_OG)
        best_loss_OG = torch.minimum(loss_OG, best_loss_OG)
    assert best_OG is not None
    return best_OG


def _loss(error_OGg: Tensor, blocks_Ggg: Tensor | None) -> Tensor:
    if blocks_Ggg is None:
        return error_OGg.square().sum(-1)
    error_GOg = error_OGg.transpose(0, 1)
    return ((error_GOg @ blocks_Ggg) * error_GOg).sum(-1).T


def _diagonal_blocks(gram_II: Tensor, size: int) -> Tensor:
    groups = gram_II.shape[0] // size
    blocks_GgGg: Tensor = gram_II.unflatten(1, (groups, size)).unflatten(0, (groups, size))
    return blocks_GgGg.diagonal(dim1=0, dim2=2).permute(2, 0, 1)
