"""Where to clip weights: a scale that saturates the largest ones is finer for all others.

The search of AWQ (Lin et al. 2023, arXiv:2306.00978, `auto_clip` of its code), with the loss in closed form. Group g of
row o has the error d = Q(w) - w over its inputs and costs

    d H_gg d^T,   H_gg = the group's own block of H = sum x x^T

which is the squared error of the output that this group alone makes. Without H it is the squared error of the weights.
Shape letters: O output features, r of them at a time, I input features, G groups, g inputs of a group,
S shrinks.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from r1v_export.checkpoint.row_threads import each_part
from r1v_export.quantization.algorithms.output_error import output_errors
from r1v_export.quantization.number_formats import WeightType
from r1v_export.quantization.quant_params import QuantParams, params_of_range, rows_at_once, value_range
from r1v_export.quantization.quantized_linear import quantization_error

SHRINKS = tuple(1 - step / 20 for step in range(11))
"""Fractions of the full range that are tried, 1 to 0.5."""

_LEAST_ROWS = 256
"""Rows that are multiplied by a Gram matrix at a time, at least: fewer would take longer to read it than to use it."""


def clipped_params(
    weight_OI: Tensor,
    kind: WeightType,
    group_size: int | None,
    gram_II: Tensor | None = None,
    input_scale_I: Tensor | None = None,
) -> QuantParams:
    """Parameters whose range, per row and group, is the best of SHRINKS times the full one.

    Args:
        weight_OI: [O, I] of any floating dtype.
        gram_II: sum of x x^T over tokens; None weighs all errors alike.
        input_scale_I: what x has been divided by since.
    """
    params = QuantParams.unset(weight_OI, kind, group_size)
    size = group_size or weight_OI.shape[1]
    grams = [] if gram_II is None else _diagonal_blocks(gram_II, size, input_scale_I)
    count = max(rows_at_once(weight_OI, size), _LEAST_ROWS if grams else 1)

    def search(part: range) -> None:
        values_rg, *spare = torch.empty(3 if grams else 2, min(count, len(part)), size, device=weight_OI.device)
        for start in part[::count]:
            rows = slice(start, min(start + count, part.stop))
            found = rows.stop - rows.start
            for group in range(params.scale.shape[1]):
                values_rg[:found] = weight_OI[rows, group * size : (group + 1) * size]
                gram_gg = grams[group] if grams else None
                scale_r, zero_point_r = _best_params(values_rg[:found], kind, gram_gg, [s[:found] for s in spare])
                params.scale[rows, group] = scale_r
                if params.zero_point is not None and zero_point_r is not None:
                    params.zero_point[rows, group] = zero_point_r

    each_part(len(weight_OI), search)
    return params


def _best_params(
    values_rg: Tensor, kind: WeightType, gram_gg: Tensor | None, spare: Sequence[Tensor]
) -> tuple[Tensor, Tensor | None]:
    """Scale and zero point [r] of a group of inputs, of least loss.

    Args:
        spare: memory of the values' shape to compute in: one tensor, with a Gram matrix two.
    """
    error_rg = spare[0]
    low_r, high_r = value_range(values_rg, kind, error_rg)
    shrinks_S1 = values_rg.new_tensor(SHRINKS)[:, None]
    scale_Sr, zero_point_Sr = params_of_range(low_r, high_r, kind, shrinks_S1)
    loss_Sr = torch.empty_like(scale_Sr)
    for index, scale_r in enumerate(scale_Sr):
        zero_point_r1 = None if zero_point_Sr is None else zero_point_Sr[index, :, None]
        quantization_error(values_rg, scale_r[:, None], kind, zero_point_r1, error_rg)
        loss_Sr[index] = error_rg.square_().sum(1) if gram_gg is None else output_errors(error_rg, gram_gg, spare[1])
    best_1r = loss_Sr.argmin(0, keepdim=True)  # the first of equals
    scale_r = scale_Sr.gather(0, best_1r)[0]
    return scale_r, None if zero_point_Sr is None else zero_point_Sr.gather(0, best_1r)[0]


def _diagonal_blocks(gram_II: Tensor, size: int, scale_I: Tensor | None) -> list[Tensor]:
    """Each group's own Gram matrix [g, g], of its inputs divided by a scale."""
    blocks = []
    for start in range(0, len(gram_II), size):
        group = slice(start, start + size)
        block_gg = gram_II[group, group]
        blocks.append(block_gg.contiguous() if scale_I is None else block_gg / scale_I[group] / scale_I[group, None])
    return blocks
