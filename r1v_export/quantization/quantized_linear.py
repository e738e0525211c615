"""What a quantized linear is, whichever algorithm made it, and the rounding that all of them and the graphs share.

Rounding is that of ONNX QuantizeLinear: divide by the scale, round to nearest with ties to even, saturate.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from r1v_export.count import Count
from r1v_export.errors import CheckpointError
from r1v_export.quantization.number_formats import QWEIGHT_DTYPES, RANGES, InputType, WeightType


@dataclass(frozen=True)
class QuantizedLinear:
    """A linear's quantized weight with its scales, and how its input is quantized. The bias is unchanged.

    weight[o, i] = (qweight[o, i] - zero_point[o, g]) * scale[o, g], where g = i // group_size, or one scale per row.
    Column i belongs to input feature i, or to `input_order[i]`.
    """

    qweight: Tensor
    """[out, in], float8_e4m3fn for fp8, else int8 (4-bit values unpacked: -8..7 for int4, 0..15 for uint4)."""
    weight_type: WeightType
    scale: Tensor
    """float32, [out] (per output channel) or [out, in / group_size]."""
    zero_point: Tensor | None = None
    """int8, shaped as `scale`; uint4 only."""
    group_size: int | None = None
    """Inputs that share a scale; None is per output channel."""
    input_type: InputType | None = None
    """None quantizes the weight only."""
    input_scale: Tensor | None = None
    """float32 scalar, static per tensor. None with `input_type` set is dynamic: one scale per token."""
    pre_quant_scale: Tensor | None = None
    """float32 [in], what the input is multiplied by before all else. Only imported checkpoints have it."""
    input_order: Tensor | None = None
    """int32 [in], the input feature of each column of `qweight`; None is their own order. GPTQ with act-order: columns
    are sorted by their group."""

    @property
    def shape(self) -> tuple[int, int]:
        """(out features, in features)."""
        return self.qweight.shape[0], self.qweight.shape[1]

    def dequantize(self) -> Tensor:
        """The weight that the linear computes with, [out, in] float32, columns in the order of its input features."""
        return self.by_input_feature(self._dequantize_columns())

    def by_input_feature(self, columns_OI: Tensor) -> Tensor:
        """Columns [rows, in] of such a weight, put in the order of its input features."""
        return columns_OI if self.input_order is None else columns_OI[:, self.input_order.argsort()]

    def group_index(self) -> Tensor:
        """The group of each input feature, int32 [in]: AutoGPTQ's and compressed-tensors' `g_idx`."""
        group_of_column = torch.arange(self.shape[1], dtype=torch.int32) // (self.group_size or self.shape[1])
        return self.by_input_feature(group_of_column[None])[0]

    def _dequantize_columns(self) -> Tensor:
        # In place: of a large head, float32 is there once.
        weight_OI = self.qweight.to(torch.float32, copy=True)
        if self.group_size is None:
            return weight_OI.mul_(self.scale[:, None])
        groups_OGI = weight_OI.unflatten(1, (-1, self.group_size))
        if self.zero_point is not None:
            groups_OGI.sub_(self.zero_point.float()[..., None])
        groups_OGI.mul_(self.scale[..., None])
        return weight_OI

    def to(self, device: torch.device | str) -> QuantizedLinear:
        """A copy with its tensors on a device."""
        moved: dict[str, Any] = {k: v.to(device) for k, v in vars(self).items() if isinstance(v, Tensor)}
        return replace(self, **moved)

    def validate(self) -> str | None:
        """What is wrong with it, as the end of the sentence "This quantized linear has ...", or None."""
        out_features, in_features = self.qweight.shape if self.qweight.ndim == 2 else (0, 0)
        groups = () if self.group_size is None else (in_features // self.group_size,)
        if self.qweight.dtype != QWEIGHT_DTYPES[self.weight_type] or self.qweight.ndim != 2:
            return f"values of {self.qweight.dtype} {tuple(self.qweight.shape)} for {self.weight_type}"
        if self.group_size is not None and in_features % self.group_size:
            return f"{Count(in_features, 'input feature')}, which groups of {self.group_size} do not divide"
        if tuple(self.scale.shape) != (out_features, *groups):
            return f"scales of shape {tuple(self.scale.shape)} instead of {(out_features, *groups)}"
        if (self.weight_type == "uint4") != (self.zero_point is not None):
            return "zero points without uint4 weights or uint4 weights without zero points"
        if self.zero_point is not None and self.zero_point.shape != self.scale.shape:
            return f"zero points of shape {tuple(self.zero_point.shape)} instead of {tuple(self.scale.shape)}"
        if self.input_scale is not None and (self.input_type is None or self.input_scale.ndim):
            return "an input scale that is not a scalar, or none of its inputs quantized"
        if self.pre_quant_scale is not None and tuple(self.pre_quant_scale.shape) != (in_features,):
            return f"a pre_quant_scale of shape {tuple(self.pre_quant_scale.shape)} instead of {(in_features,)}"
        if self.input_order is not None and not is_permutation(self.input_order, in_features):
            return "an input order that does not name each of its input features once"
        scales = [scale for scale in (self.scale, self.input_scale, self.pre_quant_scale) if scale is not None]
        if not all(bool((scale.isfinite() & (scale > 0)).all()) for scale in scales):
            return "a scale that is not a positive, finite number"
        return None


def is_permutation(order: Tensor, size: int) -> bool:
    """Whether `order` [size] has each of 0 .. size - 1 once."""
    numbers = torch.arange(size, dtype=order.dtype, device=order.device)
    return order.shape == numbers.shape and bool((order.sort().values == numbers).all())


def quantize(values: Tensor, scale: Tensor, kind: str, zero_point: Tensor | None = None) -> Tensor:
    """Quantize values with a scale and a zero point (broadcast against them); the result is of QWEIGHT_DTYPES[kind].

    NaN stays NaN in fp8 and is 0 in integers: callers check for it.
    """
    return round_(values / scale, kind, zero_point).to(QWEIGHT_DTYPES[kind])


def round_(quotients: Tensor, kind: str, zero_point: Tensor | None = None) -> Tensor:
    """Bring values [...] that were divided by their scale to numbers that QWEIGHT_DTYPES[kind] represents, in place;
    of fp8 only their range, because the cast rounds."""
    return _round_to(quotients, quotients, kind, zero_point)


def _round_to(out: Tensor, quotients: Tensor, kind: str, zero_point: Tensor | None) -> Tensor:
    if kind != "fp8":
        torch.round(quotients, out=out)
    elif out is not quotients:
        out.copy_(quotients)
    if zero_point is not None:
        out += zero_point
    # The cast to float8 rounds to nearest even itself but gives NaN, not 448, beyond the range.
    return out.clamp_(*RANGES[kind])


def quantization_error(
    values: Tensor, scale: Tensor, kind: str, zero_point: Tensor | None, out: Tensor, spare: Tensor
) -> None:
    """Write by how many scales values [...] change when they are quantized and dequantized to `out`.

    Args:
        values, scale, zero_point: broadcast to the shape of `out`.
        spare: memory of the same shape.
    """
    _round_to(out, torch.div(values, scale, out=spare), kind, zero_point)
    if kind == "fp8":
        out.copy_(out.to(QWEIGHT_DTYPES[kind]))
    if zero_point is not None:
        out -= zero_point
    out -= spare


def quantize_dequantize(values: Tensor, scale: Tensor, kind: str) -> Tensor:
    """Quantize and dequantize values [...], float32: what a Q/DQ pair computes. `scale` broadcasts."""
    return quantize(values, scale, kind).float() * scale


def token_scale(values: Tensor, kind: str) -> Tensor:
    """Dynamic scales [..., 1] of values [..., I]: the largest magnitude per token over the type's largest value."""
    return scale_for(values.abs().amax(-1, keepdim=True), kind)


def absmax(values: Tensor) -> Tensor:
    """Largest magnitude of values [...], a scalar; NaN propagates. One pass, without the copy of `abs`."""
    low, high = torch.aminmax(values)
    return torch.maximum(-low, high)


def all_finite(values: Tensor) -> bool:
    """Whether values [...] are finite; a ninth of the time of `isfinite().all()`, and no masks in memory."""
    return not values.numel() or bool(absmax(values).isfinite())


def scale_for(threshold: Tensor, kind: str) -> Tensor:
    """The symmetric scales that map thresholds [...], none below 0, to the largest quantized value; 1 where the
    threshold is 0, and NaN where it is NaN."""
    return torch.where(threshold == 0, 1.0, threshold.float() / RANGES[kind][1])


def not_finite(name: str, weight: Tensor) -> CheckpointError:
    """The error for a weight [out_features, in_features], by its name, that has no finite scale."""
    return CheckpointError(
        "A weight is NaN or infinite: it cannot be quantized.",
        where=name,
        expected="finite numbers",
        found=f"{int((~weight.isfinite()).sum())} that are not",
        fix="use another copy of the checkpoint, or exclude this linear from the recipe",
    )
