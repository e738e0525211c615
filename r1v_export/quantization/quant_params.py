"""The parameters that a weight is quantized with: a scale, and for uint4 a zero point, per row and group.

One form for every weight type. A scale per output channel is one group as wide as the row.
Shape letters: O output features, r of them at a time, I input features, G groups, g inputs of a group.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from r1v_export.checkpoint.row_threads import each_part
from r1v_export.quantization.number_formats import QWEIGHT_DTYPES, RANGES, WeightType
from r1v_export.quantization.quantized_linear import QuantizedLinear, round_, scale_for

BLOCK_VALUES = 1 << 20
"""Weights that are worked on at a time on the CPU. Fewer would stay in a core's own cache, but the operations on them
are so short that two threads gain little over one: each waits for Python's lock. A GPU takes `CUDA_BLOCK_VALUES`."""
CUDA_BLOCK_VALUES = 1 << 26


@dataclass(frozen=True)
class QuantParams:
    """scale [O, G] float32 and zero_point [O, G] int8 (uint4) or None (symmetric).

    Weights [O, I] may be of any floating dtype, mapped from a file for example: they are read once, a few rows at a
    time, and no copy of their size is made.
    """

    kind: WeightType
    scale: Tensor
    zero_point: Tensor | None

    @classmethod
    def from_weight(
        cls, weight_OI: Tensor, kind: WeightType, group_size: int | None, shrink: float = 1.0
    ) -> QuantParams:
        """Parameters whose range just covers each group of a weight [O, I], or `shrink` times as much.

        Symmetric: scale = max|w| / largest quantized value. uint4: scale = (max(w, 0) - min(w, 0)) / 15, and the zero
        point is the quantized value of 0, so that 0 is represented exactly. NaN and infinity make no error here:
        callers check for them.
        """
        params = cls.unset(weight_OI, kind, group_size)

        def fit(part: range) -> None:
            for rows, values_rGg, spare_rGg in row_blocks(weight_OI, part, params.scale.shape[1]):
                params._fit(weight_OI, rows, values_rGg, spare_rGg, shrink)

        each_part(len(weight_OI), fit)
        return params

    @classmethod
    def round_to_nearest(cls, weight_OI: Tensor, kind: WeightType, group_size: int | None) -> QuantizedLinear:
        """The weight rounded with the parameters of `from_weight`, both in one pass over it."""
        params = cls.unset(weight_OI, kind, group_size)
        qweight_OI = torch.empty(weight_OI.shape, dtype=QWEIGHT_DTYPES[kind], device=weight_OI.device)

        def fit_and_round(part: range) -> None:
            for rows, values_rGg, spare_rGg in row_blocks(weight_OI, part, params.scale.shape[1]):
                params._fit(weight_OI, rows, values_rGg, spare_rGg, 1.0)
                params._round(rows, values_rGg, qweight_OI[rows])

        each_part(len(weight_OI), fit_and_round)
        return params.linear(qweight_OI)

    @classmethod
    def unset(cls, weight_OI: Tensor, kind: WeightType, group_size: int | None) -> QuantParams:
        """Parameters of the shape that a weight [O, I] needs, to be filled in."""
        groups = weight_OI.shape[1] // group_size if group_size else 1
        scale_OG = torch.empty(len(weight_OI), groups, device=weight_OI.device)
        return cls(kind, scale_OG, torch.empty_like(scale_OG, dtype=torch.int8) if kind == "uint4" else None)

    def _fit(self, weight_OI: Tensor, rows: slice, values_rGg: Tensor, spare_rGg: Tensor, shrink: float) -> None:
        """Set the parameters of some rows."""
        if weight_OI.dtype.itemsize == 2 and self.kind != "uint4":  # half the bytes to go over
            values_rGg = weight_OI[rows].unflatten(1, values_rGg.shape[1:])
        low_rG, high_rG = value_range(values_rGg, self.kind, spare_rGg)
        scale_rG, zero_point_rG = params_of_range(low_rG, high_rG, self.kind, shrink)
        self.scale[rows] = scale_rG
        if self.zero_point is not None and zero_point_rG is not None:
            self.zero_point[rows] = zero_point_rG

    def rows(self, rows: slice) -> QuantParams:
        """The parameters of some rows."""
        return QuantParams(self.kind, self.scale[rows], None if self.zero_point is None else self.zero_point[rows])

    def qweight(self, weight_OI: Tensor) -> Tensor:
        """The nearest quantized values of a weight, [O, I]."""
        qweight_OI = torch.empty(weight_OI.shape, dtype=QWEIGHT_DTYPES[self.kind], device=weight_OI.device)

        def round_part(part: range) -> None:
            for rows, values_rGg, _ in row_blocks(weight_OI, part, self.scale.shape[1]):
                self._round(rows, values_rGg, qweight_OI[rows])

        each_part(len(weight_OI), round_part)
        return qweight_OI

    def _round(self, rows: slice, values_rGg: Tensor, qweight_rI: Tensor) -> None:
        """Write the quantized values of some rows, over `values_rGg` too."""
        zero_point_rG1 = None if self.zero_point is None else self.zero_point[rows, :, None]
        rounded_rGg = round_(values_rGg.div_(self.scale[rows, :, None]), self.kind, zero_point_rG1)
        qweight_rI.copy_(rounded_rGg.flatten(1))

    def quantize_dequantize(self, weight_OI: Tensor) -> Tensor:
        """The weight quantized and dequantized, [O, I] float32."""
        return self.linear(self.qweight(weight_OI)).dequantize()

    def linear(self, qweight_OI: Tensor) -> QuantizedLinear:
        """The weight-only quantized linear with these quantized values, [O, I]."""
        groups = self.scale.shape[1]
        if groups == 1 and self.kind in ("fp8", "int8"):
            return QuantizedLinear(qweight_OI, self.kind, self.scale[:, 0])
        return QuantizedLinear(qweight_OI, self.kind, self.scale, self.zero_point, qweight_OI.shape[1] // groups)


def value_range(values: Tensor, kind: WeightType, spare: Tensor) -> tuple[Tensor | None, Tensor]:
    """The smallest and the largest value of groups [..., g] that parameters have to cover, float32 [...] each.

    Of uint4 with 0 between them; of the symmetric types None and the largest magnitude.

    Args:
        spare: memory for as many values in float32.
    """
    if kind == "uint4":
        return values.amin(-1).clamp(max=0), values.amax(-1).clamp(min=0)
    if values.dtype.itemsize != 2:
        return None, torch.abs(values, out=spare).amax(-1)
    # Without their sign, the bits of floating-point numbers are in the order of what they stand for, NaN last.
    bits = spare.flatten().view(torch.int16)[: values.numel()].view(values.shape)
    largest = torch.bitwise_and(values.view(torch.int16), torch.iinfo(torch.int16).max, out=bits).amax(-1)
    return None, largest.view(values.dtype).float()


def params_of_range(
    low: Tensor | None, high: Tensor, kind: WeightType, shrink: float | Tensor = 1.0
) -> tuple[Tensor, Tensor | None]:
    """The scale, and for uint4 the int8 zero point, that cover `shrink` times a range of `value_range`. A tensor of
    them [..., 1] gives as many parameters for each group."""
    high = high * shrink
    if low is None:
        return scale_for(high, kind), None
    low = low * shrink
    scale = scale_for(high - low, kind)
    return scale, (-low / scale).round().clamp(*RANGES[kind]).to(torch.int8)


def rows_at_once(weight_OI: Tensor, columns: int, cpu_values: int | None = None) -> int:
    """How many rows of so many columns of a weight to work on at a time, at least one.

    Args:
        cpu_values: values at a time on the CPU, instead of `BLOCK_VALUES`.
    """
    block = (cpu_values or BLOCK_VALUES) if weight_OI.device.type == "cpu" else CUDA_BLOCK_VALUES
    return max(1, block // columns)


def row_blocks(
    weight_OI: Tensor, part: range, groups: int, most: int | None = None
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Some rows of a weight, a few of them r at a time: which, their values in float32 [r, G, g], and spare memory of
    the same shape.

    The memory of both is reused for the next rows: fresh memory would cost more, page by page, than all the arithmetic.

    Args:
        most: rows at a time; what `rows_at_once` says if omitted.
    """
    in_features = weight_OI.shape[1]
    most = min(len(part), most or rows_at_once(weight_OI, in_features))
    values_rI, spare_rI = torch.empty(2, most, in_features, device=weight_OI.device)
    for start in part[::most]:
        rows = slice(start, min(start + most, part.stop))
        count = rows.stop - start
        values_rI[:count] = weight_OI[rows]
        yield rows, values_rI[:count].unflatten(1, (groups, -1)), spare_rI[:count].unflatten(1, (groups, -1))
