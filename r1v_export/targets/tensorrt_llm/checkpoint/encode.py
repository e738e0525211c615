"""One linear as the tensors that TensorRT-LLM's checkpoint has of it.

`encode` works on tensors without data too (device "meta"): that is how the writer knows all shapes beforehand.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from r1v_export.errors import UsageError
from r1v_export.quantization.number_formats import RANGES
from r1v_export.quantization.quantized_linear import QuantizedLinear
from r1v_export.targets.tensorrt_llm.checkpoint.formats import PRE_QUANT_SCALES, QuantFormat
from r1v_export.targets.tensorrt_llm.checkpoint.mapping import CUT_ALONG_INPUTS
from r1v_export.targets.tensorrt_llm.checkpoint.pack import KernelLayout, interleave, pack_outputs

WEIGHT, BIAS = "weight", "bias"
SCALE, SCALE_2, ZERO, INPUT_SCALE = (
    "weights_scaling_factor",
    "weights_scaling_factor_2",
    "zero",
    "activation_scaling_factor",
)
PRE_QUANT_SCALE, ROW_SCALE = "prequant_scaling_factor", "per_channel_scale"


@dataclass(frozen=True)
class Part:
    """One tensor of a linear: which of its axes counts output features, and which input features."""

    tensor: Tensor
    outputs: int | None = None
    inputs: int | None = None


Parts = Mapping[str, Part]
"""By suffix of the linear's name."""


def encode_plain(weight_OI: Tensor) -> Parts:
    """A linear in the model's dtype."""
    return {WEIGHT: Part(weight_OI, 0, 1)}


def encode(linear: QuantizedLinear, quant_format: QuantFormat, dtype: torch.dtype) -> Parts:
    """A quantized linear. Scales stay float32: the loader casts them to the model's dtype where a kernel expects it.

    Args:
        dtype: that the model computes in.
    """
    encoders = {
        "FP8": _per_tensor,
        "FP8_PER_CHANNEL_PER_TOKEN": _per_row,
        "W8A8_SQ_PER_CHANNEL": _smooth_quant,
        "W4A16_AWQ": _groups,
        "W4A8_AWQ": _groups_with_inputs,
        "W4A16_GPTQ": _groups_with_zeros,
    }
    parts = encoders[quant_format.algorithm](linear)
    if quant_format.algorithm in PRE_QUANT_SCALES:
        pre_quant_scale_I = torch.ones(linear.shape[1], dtype=dtype, device=linear.qweight.device)
        if linear.pre_quant_scale is not None:
            pre_quant_scale_I = linear.pre_quant_scale.to(dtype)
        parts = {**parts, PRE_QUANT_SCALE: Part(pre_quant_scale_I, inputs=0)}
    return parts


def _scalar(value: Tensor) -> Part:
    return Part(value.float().reshape(1))


def _input_scale(linear: QuantizedLinear) -> Part:
    assert linear.input_scale is not None
    return _scalar(linear.input_scale)


def _per_tensor(linear: QuantizedLinear) -> Parts:
    return {
        WEIGHT: Part(linear.qweight, 0, 1),
        SCALE: _scalar(linear.scale[0]),
        INPUT_SCALE: _input_scale(linear),
    }


def _per_row(linear: QuantizedLinear) -> Parts:
    return {WEIGHT: Part(linear.qweight, 0, 1), ROW_SCALE: Part(linear.scale, 0)}


def _smooth_quant(linear: QuantizedLinear) -> Parts:
    return {
        WEIGHT: Part(linear.qweight, 0, 1),
        SCALE: Part(linear.scale, 0),
        INPUT_SCALE: _input_scale(linear),
    }


def _groups(linear: QuantizedLinear) -> Parts:
    return {WEIGHT: Part(linear.qweight, 0, 1), SCALE: Part(linear.scale, 0, 1)}


def _groups_with_inputs(linear: QuantizedLinear) -> Parts:
    # What the kernel multiplies in FP8 is code * scale / scale_2: within its range.
    largest = (linear.scale * -RANGES["int4"][0]).max() / RANGES["fp8"][1]
    return {**_groups(linear), SCALE_2: _scalar(largest), INPUT_SCALE: _input_scale(linear)}


def _groups_with_zeros(linear: QuantizedLinear) -> Parts:
    # (code - zero_point) * scale = (code - 8) * scale + zero: the kernel's weights are signed.
    assert linear.zero_point is not None
    zero_OG = (8 - linear.zero_point.float()) * linear.scale
    return {
        WEIGHT: Part(linear.qweight - 8, 0, 1),
        SCALE: Part(linear.scale.T, 1, 0),
        ZERO: Part(zero_OG.T, 1, 0),
    }


def fuse(name: str, suffix: str, parts: Sequence[Part]) -> Part:
    """The same tensor of linears that read one input, for the linear that they become: joined along the output
    features; what has none is shared.

    Raises:
        UsageError: what they must share differs.
    """
    tensors = [part.tensor for part in parts]
    if parts[0].outputs is not None:
        return replace(parts[0], tensor=torch.cat(tensors, dim=parts[0].outputs) if len(parts) > 1 else tensors[0])
    return replace(parts[0], tensor=_shared(f"{name}.{suffix}", suffix, tensors))


def _shared(name: str, suffix: str, tensors: Sequence[Tensor]) -> Tensor:
    first = tensors[0]
    if first.is_meta or all(torch.equal(first, tensor) for tensor in tensors):
        return first
    if suffix == SCALE_2:
        return torch.stack(list(tensors)).amax(0)
    raise UsageError(
        "Linears that TensorRT-LLM runs as one product have scales of their own.",
        where=name,
        expected="one scale for all of them",
        found=", ".join(f"{float(tensor):g}" for tensor in tensors),
        fix="calibrate with granularity: tensor, which shares them (recipe fp8-tensor)",
    )


def shard(part: Part, module: str, rank: int, ranks: int) -> Part:
    """What one of `ranks` GPUs holds of a tensor of a linear."""
    axis = part.inputs if module in CUT_ALONG_INPUTS else part.outputs
    if axis is None or ranks == 1:
        return part
    size = part.tensor.shape[axis] // ranks
    return replace(part, tensor=part.tensor.narrow(axis, rank * size, size))


def stored(
    suffix: str, part: Part, quant_format: QuantFormat | None, dtype: torch.dtype, layout: KernelLayout
) -> Tensor:
    """A GPU's tensor as it goes into the file: contiguous, 4-bit weights packed."""
    tensor = part.tensor
    if quant_format is not None and suffix == WEIGHT and quant_format.algorithm in ("W4A16_AWQ", "W4A8_AWQ"):
        return pack_outputs(tensor)
    if quant_format is not None and quant_format.algorithm == "W4A16_GPTQ":
        # The loader takes these as they are, in the types that the kernel reads.
        return interleave(tensor, layout).view(dtype) if suffix == WEIGHT else tensor.to(dtype).contiguous()
    return tensor.contiguous()
