"""GPTQ (Frantar et al. 2022, arXiv:2210.17323): columns are rounded one after the other, and the error of each is
compensated, as far as possible, in the columns after it.

With H = sum x x^T + damping and the errors D = Q(W) - W, the loss is tr(D H D^T). Let H = U S U^T, U unit upper
triangular and S diagonal; then it is sum_k S_kk |(D U)_k|^2, and column k of D U holds errors of columns up to k alone:

    q_k = Q(w_k - sum_{j<k} d_j U_jk),   d_k = q_k - w_k

makes one column after the other as small as rounding allows. In real numbers it is what the paper does with the inverse
of H (Chen et al. 2025, arXiv:2507.18553: GPTQ is Babai's nearest plane algorithm); here no inverse is computed.

`act_order` takes the columns by falling diagonal of H: those that matter most are rounded while many columns are left
to compensate in. The parameters are fixed beforehand from the original weights, so that a group stays in / group_size
neighboring inputs whatever the order. `grouped_order` is for groups that follow the order: a weight with its columns
sorted so has groups of like activation. Errors of columns before a block reach it in one product, nineteen of twenty
multiplications at 5120 inputs; `products` of bfloat16 rounds what is multiplied there, to 8 bits of mantissa: the
change that it makes to a column is then off by less than a hundredth, and rounding makes up for that as for its own
errors. Within a block, and in the factorization, everything is float32.
Shape letters: O output features, r of them at a time, I input features, B columns of a block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from r1v_export.checkpoint.row_threads import each_part
from r1v_export.quantization.number_formats import QWEIGHT_DTYPES
from r1v_export.quantization.quant_params import QuantParams
from r1v_export.quantization.quantized_linear import QuantizedLinear, round_

BLOCK = 256
"""Columns of a block. A smaller one is multiplied less well, a larger one has more of its products in float32."""

VALUES_AT_ONCE = 1 << 26
"""Weights of the rows that go through all columns together, in one thread. Rows are independent of each other."""

FACTOR_BLOCK = 256
"""Columns of the Gram matrix that are factorized at a time."""


@dataclass(frozen=True)
class Compensation:
    """What quantizing the linears of one input shares.

    Attributes:
        order: the input features in the order in which they are rounded, int64 [I].
        factor: U of the Gram matrix in that order, [I, I], above its diagonal; the rest of the matrix is of no use.
        products: what is multiplied for the columns of later blocks; float32 leaves it as it is.
    """

    order: Tensor
    factor: Tensor
    products: torch.dtype = torch.float32


def gptq(weight_OI: Tensor, params: QuantParams, compensation: Compensation) -> QuantizedLinear:
    """Quantize a weight [O, I], float32, with `params` of int4, uint4 or int8 so that tr(D H D^T) is small."""
    qweight_OI = torch.empty(weight_OI.shape, dtype=QWEIGHT_DTYPES[params.kind], device=weight_OI.device)
    most = max(1, VALUES_AT_ONCE // weight_OI.shape[1])

    def round_part(part: range) -> None:
        for start in part[::most]:
            rows = slice(start, min(start + most, part.stop))
            qweight_OI[rows] = _round_rows(weight_OI[rows], params.rows(rows), compensation)

    each_part(len(weight_OI), round_part)
    return params.linear(qweight_OI)


def compensation(
    gram_II: Tensor, damping: float = 0.01, act_order: bool = True, products: torch.dtype = torch.float32
) -> Compensation:
    """Factorize the Gram matrix of an input; takes memory for one more matrix of its size.

    Args:
        gram_II: sum of x x^T over tokens, float32. All zeros give rounding to nearest.
        damping: what is added to the diagonal of H, as a fraction of its mean; ten times as much, and so on, where H
            is too singular for a factorization.
        products: of `Compensation`.
    """
    order_I = _activation_order(gram_II) if act_order else torch.arange(len(gram_II), device=gram_II.device)
    mean = float(gram_II.diagonal().mean())
    more = damping * mean if mean > 0 else 1.0
    while True:
        factor_II = _reordered(gram_II, order_I)
        factor_II.diagonal().add_(more)
        if _factorize(factor_II):
            return Compensation(order_I, factor_II, products)
        more *= 10


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


def _reordered(gram_II: Tensor, order_I: Tensor) -> Tensor:
    """A copy of a Gram matrix with its features in another order, made some rows at a time, from the diagonal on: what
    is left of it is never written, and takes no memory."""
    copy_II = torch.empty_like(gram_II)
    for start in range(0, len(gram_II), FACTOR_BLOCK):
        rows = slice(start, start + FACTOR_BLOCK)
        copy_II[rows, start:] = gram_II[order_I[rows]].index_select(1, order_I[start:])
    return copy_II


def _factorize(matrix_II: Tensor) -> bool:
    """Write U over the part of a symmetric matrix above its diagonal, U S U^T = the matrix; False if it is singular.

    A Cholesky factorization from the last columns to the first ones, some of them at a time.
    """
    for start in reversed(range(0, len(matrix_II), FACTOR_BLOCK)):
        end = min(start + FACTOR_BLOCK, len(matrix_II))
        columns_IB = matrix_II[:end, start:end]
        columns_IB.addmm_(matrix_II[:end, end:], matrix_II[start:end, end:].T, alpha=-1)
        lower_BB, failed = torch.linalg.cholesky_ex(columns_IB[start:].flip(0, 1))
        if failed:
            return False
        upper_BB = lower_BB.flip(0, 1)
        columns_IB[start:] = upper_BB
        identity_BB = torch.eye(end - start, dtype=upper_BB.dtype, device=upper_BB.device)
        inverse_BB = torch.linalg.solve_triangular(upper_BB, identity_BB, upper=True)
        columns_IB[:start] = columns_IB[:start] @ inverse_BB.T
    diagonal_I = matrix_II.diagonal().clone()  # a view of it would change while rows are divided by it
    for start in range(0, len(matrix_II), FACTOR_BLOCK):
        matrix_II[start : start + FACTOR_BLOCK, start:] /= diagonal_I[start:]
    return True


class _Errors:
    """Errors w - q of some rows [I, r], by the order of rounding, and what they change in the columns after them.

    Views of all columns of a block are made at once: those that a loop makes one by one cost as much as its arithmetic.
    """

    def __init__(self, compensation: Compensation, weight_Ir: Tensor) -> None:
        self.factor_II = compensation.factor
        self.next_to = compensation.factor.diagonal(1).tolist()
        self.rounds = compensation.products != torch.float32 and weight_Ir.dtype == torch.float32
        self.error_Ir = torch.empty_like(weight_Ir, dtype=compensation.products if self.rounds else None)
        self.change_Br = torch.empty_like(weight_Ir[:BLOCK])
        self.changes = self.change_Br.unbind()
        self._exact_Br = torch.empty_like(self.change_Br) if self.rounds else None

    def begin(self, start: int, end: int) -> tuple[Tensor, ...]:
        """Begin a block: find what all before it change in it, and return where its columns' errors go."""
        self.start, self.end = start, end
        self.error_Br = self.error_Ir[start:end] if self._exact_Br is None else self._exact_Br[: end - start]
        self.errors = self.error_Br.unbind()
        factor_IB, change_Br = self.factor_II[:start, start:end], self.change_Br[: end - start]
        if self.rounds:
            change_Br.copy_(factor_IB.T.to(self.error_Ir.dtype) @ self.error_Ir[:start])
        else:
            torch.mm(factor_IB.T, self.error_Ir[:start], out=change_Br)
        return self.errors

    def spread(self, first: int, middle: int, last: int) -> None:
        """Add what errors of the block's columns from `first` on change in those from `middle` to before `last`."""
        if last - first == 2:
            self.changes[middle - self.start].add_(self.errors[first - self.start], alpha=self.next_to[first])
            return
        change_Br = self.change_Br[middle - self.start : last - self.start]
        error_Br = self.error_Br[first - self.start : middle - self.start]
        change_Br.addmm_(self.factor_II[first:middle, middle:last].T, error_Br)

    def finish(self) -> None:
        """End the block: its errors are only multiplied from now on."""
        if self.rounds:
            self.error_Ir[self.start : self.end] = self.error_Br


def _round_rows(weight_rI: Tensor, params: QuantParams, compensation: Compensation) -> Tensor:
    """Quantized values [r, I] of some rows. Works on transposes: a column of the weight is contiguous there."""
    order = compensation.order.tolist()
    weight_Ir = weight_rI.T.contiguous()
    qweight_Ir = torch.empty_like(weight_Ir, dtype=QWEIGHT_DTYPES[params.kind])
    target_r = torch.empty_like(weight_Ir[0])
    weights, qweights = weight_Ir.unbind(), qweight_Ir.unbind()
    scales, zero_points = _column_params(params, len(order))
    propagated = _Errors(compensation, weight_Ir)
    for start in range(0, len(order), BLOCK):
        end = min(start + BLOCK, len(order))
        errors = propagated.begin(start, end)
        for index in _halving(start, end, propagated.spread):
            column = order[index]
            scale_r, zero_point_r = scales[column], zero_points[column]
            torch.add(weights[column], propagated.changes[index - start], out=target_r)
            qweights[column].copy_(round_(target_r.div_(scale_r), params.kind, zero_point_r))
            if zero_point_r is not None:
                target_r -= zero_point_r
            torch.addcmul(weights[column], target_r, scale_r, value=-1, out=errors[index - start])
        propagated.finish()
    return qweight_Ir.T


def _column_params(params: QuantParams, in_features: int) -> tuple[list[Tensor], list[Tensor | None]]:
    """Scale and zero point [r] of each column."""
    size = in_features // params.scale.shape[1]
    scales = [scale_r for scale_r in params.scale.T.contiguous() for _ in range(size)]
    if params.zero_point is None:
        return scales, [None] * in_features
    return scales, [zero_point_r for zero_point_r in params.zero_point.T.contiguous() for _ in range(size)]


def _halving(start: int, end: int, spread: Callable[[int, int, int], None]) -> Iterator[int]:
    """Columns from `start` to before `end`, in order; between the two halves of them, and so on, `spread` from the one
    to the other: errors reach later columns in products as large as can be."""
    if end - start == 1:
        yield start
        return
    middle = (start + end) // 2
    yield from _halving(start, middle, spread)
    spread(start, middle, end)
    yield from _halving(middle, end, spread)
