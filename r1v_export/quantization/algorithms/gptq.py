"""GPTQ (Frantar et al. 2022, arXiv:2210.17323): columns are rounded one after the other, and the error of each is
compensated, as far as possible, in the columns after it.

With H = sum x x^T + damping and H^-1 = C^T C, C upper triangular, the step for column j of every row is

    q = Q(w_j),   e = (w_j - q) / C_jj,   w_k -= e C_jk  for k > j

`act_order` takes the columns by falling diagonal of H: those that matter most are rounded while many columns are left
to compensate in. The parameters are fixed beforehand from the original weights, so that a group stays in / group_size
neighboring inputs whatever the order. `grouped_order` is for groups that follow the order: a weight with its columns
sorted so has groups of like activation. Columns go in blocks: within one, they are updated one by one; those after it
in one product.
Shape letters: O output features, I input features, B columns of a block.
"""

from __future__ import annotations

import torch
from torch import Tensor

from r1v_export.quantization.number_formats import QWEIGHT_DTYPES
from r1v_export.quantization.quant_params import QuantParams
from r1v_export.quantization.quantized_linear import QuantizedLinear, quantize

BLOCK = 128
"""Columns of a block."""

ROWS_AT_ONCE = 1024
"""Rows that go through all columns together: a block of them fits the cache. Rows are independent of each other."""


def gptq(
    weight_OI: Tensor, gram_II: Tensor, params: QuantParams, damping: float = 0.01, act_order: bool = True
) -> QuantizedLinear:
    """Quantize a weight with `params` so that tr(D H D^T) is small.

    Args:
        weight_OI: [out, in] float32.
        gram_II: sum of x x^T over tokens. All zeros give rounding to nearest.
        params: one of int4, uint4 or int8 for the weight.
        damping: what is added to the diagonal of H, as a fraction of its mean; ten times as much, and so on, where H
            is too singular for a factorization.
    """
    order_I = _activation_order(gram_II) if act_order else torch.arange(len(gram_II))
    order_I = order_I.to(weight_OI.device)
    factor_II = inverse_factor(gram_II, order_I, damping)
    qweight = []
    for start in range(0, len(weight_OI), ROWS_AT_ONCE):
        rows = slice(start, start + ROWS_AT_ONCE)
        qweight.append(_round_rows(weight_OI[rows], factor_II, params.rows(rows), order_I))
    return params.linear(torch.cat(qweight))


def _activation_order(gram_II: Tensor) -> Tensor:
    """The input features by falling diagonal of their Gram matrix, int64 [I]."""
    return gram_II.diagonal().argsort(descending=True, stable=True)


def grouped_order(gram_II: Tensor, group_size: int) -> Tensor:
    """The input features by their group, int64 [I], where groups follow the activation order: the features of largest
    activation are the first group. Within a group features keep their order, as readers of `g_idx` sort them.

    Args:
        gram_II: sum of x x^T over tokens.
        group_size: inputs of a group; divides their number.
    """
    order_I = _activation_order(gram_II)
    grouped_I: Tensor = order_I.unflatten(0, (-1, group_size)).sort(dim=1).values.flatten()
    return grouped_I


def inverse_factor(gram_II: Tensor, order_I: Tensor, damping: float) -> Tensor:
    """C, upper triangular with C^T C = (H + damping * mean(diag H) * 1)^-1, for H with its channels in `order`.

    With the axes of H reversed, its Cholesky factor L, L L^T = H, turned back is an upper triangular M with M M^T = H;
    then C = M^-1. No inverse of H is formed, and never more than three matrices of its size.
    """
    backwards_I = order_I.flip(0)
    reversed_II = gram_II[backwards_I][:, backwards_I]
    mean = float(reversed_II.diagonal().mean())
    more = damping * mean if mean > 0 else 1.0
    while True:
        reversed_II.diagonal().add_(more)
        lower_II, failed = torch.linalg.cholesky_ex(reversed_II)
        if not failed:
            break
        damping, more = 10 * damping, 9 * damping * mean
    del reversed_II
    identity_II = torch.eye(len(lower_II), dtype=lower_II.dtype, device=lower_II.device)
    factor_II: Tensor = torch.linalg.solve_triangular(lower_II.flip(0, 1), identity_II, upper=True)
    return factor_II


def _round_rows(weight_OI: Tensor, factor_II: Tensor, params: QuantParams, order_I: Tensor) -> Tensor:
    """Quantized values [O, I] of some rows. Works on transposes: a column of the weight is contiguous there."""
    remaining_IO = weight_OI[:, order_I].T.contiguous()
    scale_GO = params.scale.T.contiguous()
    zero_point_GO = (
        torch.zeros_like(scale_GO) if params.zero_point is None else params.zero_point.T.float().contiguous()
    )
    qweight_IO = torch.empty_like(remaining_IO, dtype=QWEIGHT_DTYPES[params.kind])
    groups = (order_I // (len(order_I) // len(scale_GO))).tolist()
    for start in range(0, len(remaining_IO), BLOCK):
        end = min(start + BLOCK, len(remaining_IO))
        error_BO = torch.empty_like(remaining_IO[start:end])
        for column in range(start, end):
            scale_O, zero_point_O = scale_GO[groups[column]], zero_point_GO[groups[column]]
            qweight_O = quantize(remaining_IO[column], scale_O, params.kind, zero_point_O)
            qweight_IO[column] = qweight_O
            error_O = error_BO[column - start]
            torch.sub(remaining_IO[column], (qweight_O.float() - zero_point_O) * scale_O, out=error_O)
            error_O /= factor_II[column, column]
            remaining_IO[column + 1 : end].addr_(factor_II[column, column + 1 : end], error_O, alpha=-1)
        remaining_IO[end:].addmm_(factor_II[start:end, end:].T, error_BO, alpha=-1)
    return qweight_IO.T[:, order_I.argsort()].contiguous()
