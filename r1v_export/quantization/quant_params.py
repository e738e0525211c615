"""The parameters that a weight is quantized with: a scale, and for uint4 a zero point, per row and group.

One form for every weight type. A scale per output channel is one group as wide as the row.
Shape letters: O output features, I input features, G groups, g inputs of a group.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from r1v_export.quantization.number_formats import RANGES, WeightType
from r1v_export.quantization.quantized_linear import QuantizedLinear, absmax, quantize, scale_for

ROWS_AT_ONCE = 512
"""Rows that are worked on at a time: temporaries stay small and in cache. Rows are independent of each other."""


@dataclass(frozen=True)
class QuantParams:
    """scale [O, G] float32 and zero_point [O, G] int8 (uint4) or None (symmetric)."""

    kind: WeightType
    scale: Tensor
    zero_point: Tensor | None

    @classmethod
    def from_weight(
        cls, weight_OI: Tensor, kind: WeightType, group_size: int | None, shrink: float | Tensor = 1.0
    ) -> QuantParams:
        """Parameters whose range just covers each group of a weight [O, I], or `shrink` (a number, or [O, G]) times as
        much.

        Symmetric: scale = max|w| / largest quantized value. uint4: scale = (max(w, 0) - min(w, 0)) / 15, and the zero
        point is the quantized value of 0, so that 0 is represented exactly.
        """
        weight_OGg = _grouped(weight_OI, group_size)
        if kind != "uint4":
            return cls(kind, scale_for(absmax(weight_OGg, -1) * shrink, kind), None)
        low_OG, high_OG = torch.aminmax(weight_OGg, dim=-1)
        low_OG, high_OG = low_OG.clamp(max=0) * shrink, high_OG.clamp(min=0) * shrink
        scale_OG = scale_for(high_OG - low_OG, kind)
        return cls(kind, scale_OG, (-low_OG / scale_OG).round().clamp(*RANGES[kind]).to(torch.int8))

    def rows(self, rows: slice) -> QuantParams:
        """The parameters of some rows."""
        return QuantParams(self.kind, self.scale[rows], None if self.zero_point is None else self.zero_point[rows])

    def qweight(self, weight_OI: Tensor) -> Tensor:
        """The nearest quantized values of a weight, [O, I]."""
        starts = range(0, len(weight_OI), ROWS_AT_ONCE)
        return torch.cat([self._qweight(weight_OI, slice(start, start + ROWS_AT_ONCE)) for start in starts])

    def _qweight(self, weight_OI: Tensor, rows: slice) -> Tensor:
        zero_point = None if self.zero_point is None else self.zero_point[rows, :, None]
        weight_OGg = weight_OI[rows].unflatten(1, (self.scale.shape[1], -1))
        return quantize(weight_OGg, self.scale[rows, :, None], self.kind, zero_point).flatten(1)

    def quantize_dequantize(self, weight_OI: Tensor) -> Tensor:
        """The weight quantized and dequantized, [O, I] float32."""
        return self.linear(self.qweight(weight_OI)).dequantize()

    def linear(self, qweight_OI: Tensor) -> QuantizedLinear:
        """The weight-only quantized linear with these quantized values, [O, I]."""
        groups = self.scale.shape[1]
        if groups == 1 and self.kind in ("fp8", "int8"):
            return QuantizedLinear(qweight_OI, self.kind, self.scale[:, 0])
        return QuantizedLinear(qweight_OI, self.kind, self.scale, self.zero_point, qweight_OI.shape[1] // groups)


def _grouped(weight_OI: Tensor, group_size: int | None) -> Tensor:
    weight_OGg: Tensor = weight_OI.unflatten(1, (-1, weight_OI.shape[1] if group_size is None else group_size))
    return weight_OGg
