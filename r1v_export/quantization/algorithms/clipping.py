"""Where to clip weights: a scale that saturates the largest ones is finer for all others.

The search of AWQ (Lin et al. 2023, arXiv:2306.00978, `auto_clip` of its code), with the loss in closed form. Group g of
row o has the error d = Q(w) - w over its inputs and costs

    d H_gg d^T,   H_gg = the group's own block of H = sum x x^T

which is the squared error of the output that this group alone makes. H_gg is symmetric, so with its inputs in four
parts it is d T d^T, where T has twice the blocks of H_gg below its diagonal and none above: five eighths of the
product. Without H the loss is the squared error of the weights.

Products are most of the search. Of bfloat16 operands, d and T rounded to 8 bits of mantissa, they take half the time;
a loss is then off by a few of its ten-thousandths, which decides only between shrinks that cost the same.
Shape letters: O output features, r of them at a time, I input features, G groups, g inputs of a group,
S shrinks.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from r1v_export.checkpoint.row_threads import each_part
from r1v_export.quantization.number_formats import WeightType
from r1v_export.quantization.quant_params import QuantParams, params_of_range, row_blocks, rows_at_once, value_range
from r1v_export.quantization.quantized_linear import quantization_error

SHRINKS = tuple(1 - step / 20 for step in range(11))
"""Fractions of the full range that are tried, 1 to 0.5."""

_PARTS = 4
"""Of a group's inputs: more would multiply less, by blocks that are too narrow to be multiplied fast."""

_ERROR_VALUES = 1 << 17
"""Of the errors of all shrinks, computed at a time on the CPU, so that they stay in a core's cache. As many rows of the
whole weight are in memory then, for each thread: more values would take eight times as much of it."""

_LEAST_ERRORS = 256
"""Rows of errors that are multiplied by a Gram matrix at a time, at least: fewer would take longer to read it than to
use it."""

_MORE_ROUNDED_ERRORS = 4
"""Times as many where they are rounded: to begin a product takes longer then, and less memory is read for it."""


def clipped_params(
    weight_OI: Tensor,
    kind: WeightType,
    group_size: int | None,
    gram_II: Tensor | None = None,
    input_scale_I: Tensor | None = None,
    products: torch.dtype = torch.float32,
) -> QuantParams:
    """Parameters whose range, per row and group, is the best of SHRINKS times the full one.

    Args:
        weight_OI: [O, I] of any floating dtype.
        gram_II: sum of x x^T over tokens; None weighs all errors alike.
        input_scale_I: what x has been divided by since.
        products: what errors and Gram matrices are rounded to before they are multiplied.
    """
    params = QuantParams.unset(weight_OI, kind, group_size)
    size = group_size or weight_OI.shape[1]
    grams = [] if gram_II is None else _triangular_blocks(gram_II, size, input_scale_I, products)
    errors_at_once = max(rows_at_once(weight_OI, size, _ERROR_VALUES), _LEAST_ERRORS if grams else 1)
    rounds = bool(grams) and products != torch.float32
    errors_at_once *= _MORE_ROUNDED_ERRORS if rounds else 1
    count = max(1, errors_at_once // len(SHRINKS))
    shrinks_S1 = torch.tensor(SHRINKS, device=weight_OI.device)[:, None]

    def search(part: range) -> None:
        spare = torch.empty(2, len(SHRINKS) * min(count, len(part)) * size, device=weight_OI.device)
        operands = torch.empty_like(spare, dtype=products) if rounds else spare
        for rows, values_rGg, spare_rGg in row_blocks(weight_OI, part, params.scale.shape[1], count):
            low_rG, high_rG = value_range(values_rGg, kind, spare_rGg)
            low_G1r = None if low_rG is None else low_rG.T[:, None]
            scale_GSr, zero_point_GSr = params_of_range(low_G1r, high_rG.T[:, None], kind, shrinks_S1)
            loss_GSr = _losses(values_rGg, kind, scale_GSr, zero_point_GSr, grams, spare, operands)
            best_G1r = loss_GSr.min(1, keepdim=True).indices  # the first of equals
            params.scale[rows] = scale_GSr.gather(1, best_G1r)[:, 0].T
            if params.zero_point is not None and zero_point_GSr is not None:
                params.zero_point[rows] = zero_point_GSr.gather(1, best_G1r)[:, 0].T

    each_part(len(weight_OI), search)
    return params


def _losses(
    values_rGg: Tensor,
    kind: WeightType,
    scale_GSr: Tensor,
    zero_point_GSr: Tensor | None,
    grams: list[list[Tensor]],
    spare: Tensor,
    operands: Tensor,
) -> Tensor:
    """What some rows cost with each of S parameters: [G, S, r].

    Args:
        grams: of `_triangular_blocks`; empty weighs all errors alike.
        spare: memory [2, at least S * r * g] to compute in.
        operands: as much of it in the dtype of `grams`; `spare` itself where that is float32.
    """
    (shrinks, rows), size = scale_GSr.shape[1:], values_rGg.shape[2]
    error_Srg, spare_Srg = spare[:, : shrinks * rows * size].view(2, shrinks, rows, size)
    error_xg, product_xg = operands[:, : shrinks * rows * size].view(2, shrinks * rows, size)
    parts = [(error_xg[:, part.start :], product_xg[:, part]) for part in (_parts(size) if grams else ())]
    loss_GSr = torch.empty_like(scale_GSr)
    for group, values_rg in enumerate(values_rGg.unbind(1)):
        zero_point_Sr1 = None if zero_point_GSr is None else zero_point_GSr[group, ..., None]
        quantization_error(values_rg, scale_GSr[group, ..., None], kind, zero_point_Sr1, error_Srg, spare_Srg)
        if grams:
            if operands is not spare:
                error_xg.copy_(error_Srg.flatten(0, 1))
            for (from_part_xg, product_xp), gram_gp in zip(parts, grams[group], strict=True):
                torch.mm(from_part_xg, gram_gp, out=product_xp)
            if operands is not spare:
                spare_Srg.flatten(0, 1).copy_(product_xg)
            spare_Srg.mul_(error_Srg)
        else:
            torch.square(error_Srg, out=spare_Srg)
        torch.sum(spare_Srg, 2, out=loss_GSr[group])
    return loss_GSr.mul_(scale_GSr).mul_(scale_GSr)


def _parts(size: int) -> list[slice]:
    """A group's inputs in up to `_PARTS` parts."""
    edges = sorted({size * part // _PARTS for part in range(_PARTS + 1)})
    return [slice(start, end) for start, end in pairwise(edges)]


def _triangular_blocks(gram_II: Tensor, size: int, scale_I: Tensor | None, products: torch.dtype) -> list[list[Tensor]]:
    """T of each group's own Gram matrix, of its inputs divided by a scale: of each part of the inputs the columns from
    its diagonal block on, [g from the part's first on, part], contiguous: views of a matrix multiply more slowly."""
    blocks = []
    for start in range(0, len(gram_II), size):
        columns = []
        for part in _parts(size):
            inputs, own = slice(start + part.start, start + size), slice(start + part.start, start + part.stop)
            column_gp = gram_II[inputs, own].clone(memory_format=torch.contiguous_format)
            if scale_I is not None:
                column_gp /= scale_I[own]
                column_gp /= scale_I[inputs, None]
            column_gp[part.stop - part.start :] *= 2
            columns.append(column_gp.to(products))
        blocks.append(columns)
    return blocks
