"""One linear out of the tensors that a TensorRT-LLM checkpoint has of it; the reader's half of the format.

Shape letters: O output features, I input features, G groups.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from r1v_export.errors import BundleError
from r1v_export.quantization.number_formats import InputType, WeightType
from r1v_export.quantization.quantized_linear import QuantizedLinear

TENSORS: dict[str | None, frozenset[str]] = {
    None: frozenset({"weight"}),
    "FP8": frozenset({"weight", "weights_scaling_factor", "activation_scaling_factor"}),
    "FP8_PER_CHANNEL_PER_TOKEN": frozenset({"weight", "per_channel_scale"}),
    "W8A8_SQ_PER_CHANNEL": frozenset(
        {"weight", "weights_scaling_factor", "activation_scaling_factor", "prequant_scaling_factor"}
    ),
    "W4A16_AWQ": frozenset({"weight", "weights_scaling_factor", "prequant_scaling_factor"}),
    "W4A8_AWQ": frozenset(
        {
            "weight",
            "weights_scaling_factor",
            "weights_scaling_factor_2",
            "activation_scaling_factor",
            "prequant_scaling_factor",
        }
    ),
    "W4A16_GPTQ": frozenset({"weight", "weights_scaling_factor", "zero"}),
}
"""Tensors of a linear under each algorithm, except its bias."""


@dataclass(frozen=True)
class Shard:
    """One GPU's share of a linear, or all of it."""

    weight: QuantizedLinear | Tensor
    bias: Tensor | None


def decode(
    where: str,
    found: Mapping[str, Tensor],
    algorithm: str | None,
    group_size: int,
    dtype: torch.dtype,
    kernel_layout: int = 80,
) -> Shard:
    """Decode the stored tensors of one linear.

    Args:
        where: the linear, for errors.
        found: its tensors by suffix.
        dtype: of the model.
        kernel_layout: of weights with zero points, 90 for Hopper's.

    Raises:
        BundleError: the algorithm is unknown, tensors are missing or those of another algorithm, or do not fit.
    """
    _require_tensors(where, found, algorithm)
    try:
        weight = _weight(where, found, algorithm, group_size, dtype, kernel_layout)
    except (RuntimeError, IndexError) as error:
        raise BundleError("A linear's tensors do not fit each other.", where=where, found=error) from error
    if "prequant_scaling_factor" in found and isinstance(weight, QuantizedLinear):
        weight = _with_pre_quant_scale(weight, found["prequant_scaling_factor"])
    return Shard(weight, found.get("bias"))


def _require_tensors(where: str, found: Mapping[str, Tensor], algorithm: str | None) -> None:
    if algorithm not in TENSORS:
        known = ", ".join(name for name in TENSORS if name)
        what = "A linear is quantized in a way that is not known."
        raise BundleError(what, where=where, expected=known, found=algorithm)
    suffixes = set(found) - {"bias"}
    if suffixes != TENSORS[algorithm]:
        missing, superfluous = TENSORS[algorithm] - suffixes, suffixes - TENSORS[algorithm]
        parts = [f"no {name}" for name in sorted(missing)] + [f"also {name}" for name in sorted(superfluous)]
        raise BundleError(
            f"A linear does not have the tensors of {algorithm or 'one that is not quantized'}.",
            where=where,
            expected=", ".join(sorted(TENSORS[algorithm])),
            found=", ".join(parts),
            fix="build the bundle again",
        )


def _weight(
    where: str,
    found: Mapping[str, Tensor],
    algorithm: str | None,
    group_size: int,
    dtype: torch.dtype,
    kernel_layout: int,
) -> QuantizedLinear | Tensor:
    if algorithm is None:
        return _plain(where, found["weight"], dtype)
    decoders: dict[str, Callable[[], QuantizedLinear]] = {
        "FP8": lambda: _with_input(_per_tensor(found), "fp8", found),
        "FP8_PER_CHANNEL_PER_TOKEN": lambda: _with_input(_per_row(found, "fp8", "per_channel_scale"), "fp8", found),
        "W8A8_SQ_PER_CHANNEL": lambda: _with_input(_per_row(found, "int8", "weights_scaling_factor"), "int8", found),
        "W4A16_AWQ": lambda: _groups(found, group_size),
        "W4A8_AWQ": lambda: _with_input(_groups(found, group_size), "fp8", found),
        "W4A16_GPTQ": lambda: _groups_with_zeros(found, group_size, kernel_layout),
    }
    return decoders[algorithm]()


def _with_input(linear: QuantizedLinear, kind: InputType, found: Mapping[str, Tensor]) -> QuantizedLinear:
    """With its input quantized, at run time where no scale is stored."""
    scale = found["activation_scaling_factor"][0] if "activation_scaling_factor" in found else None
    return replace(linear, input_type=kind, input_scale=scale)


def _plain(where: str, weight: Tensor, dtype: torch.dtype) -> Tensor:
    if weight.dtype != dtype:
        raise BundleError(
            "A linear that is not quantized has another dtype than the model.",
            where=where,
            expected=dtype,
            found=weight.dtype,
        )
    return weight


def _per_tensor(found: Mapping[str, Tensor]) -> QuantizedLinear:
    scale_O = found["weights_scaling_factor"].expand(found["weight"].shape[0]).contiguous()
    return QuantizedLinear(found["weight"], "fp8", scale_O)


def _per_row(found: Mapping[str, Tensor], kind: WeightType, scale: str) -> QuantizedLinear:
    return QuantizedLinear(found["weight"], kind, found[scale])


def _groups(found: Mapping[str, Tensor], group_size: int) -> QuantizedLinear:
    """Rows 2j and 2j + 1 in byte j of a column, the first in the low half, two's complement."""
    packed = found["weight"]
    low, high = (packed << 4) >> 4, packed >> 4  # int8: both shifts keep the sign
    qweight_OI = torch.stack((low, high), dim=1).flatten(0, 1)
    return QuantizedLinear(qweight_OI, "int4", found["weights_scaling_factor"].float(), group_size=group_size)


def _groups_with_zeros(found: Mapping[str, Tensor], group_size: int, kernel_layout: int) -> QuantizedLinear:
    qweight_OI = undo_interleave(found["weight"], kernel_layout) + 8
    scale_OG = found["weights_scaling_factor"].float().T.contiguous()
    zero_OG = found["zero"].float().T
    # zero = (8 - zero_point) * scale, both rounded to the model's dtype: whole numbers come back exactly.
    zero_point_OG = (8 - zero_OG / scale_OG).round().to(torch.int8)
    return QuantizedLinear(qweight_OI, "uint4", scale_OG, zero_point_OG, group_size)


def undo_interleave(weight: Tensor, kernel_layout: int) -> Tensor:
    """Quantized values [out, in], -8..7, of a weight in the kernel's layout.

    Follows the kernel: iterates over the half bytes of memory, and computes which output and input channel each is.
    """
    memory = weight.view(torch.uint8)
    in_features, out_features = memory.shape[0], memory.shape[1] * 2
    halves = torch.stack((memory.flatten() & 15, memory.flatten() >> 4), dim=1).flatten().to(torch.int8) - 8
    # Before Hopper, four output channels lie together, in turn for every 64 inputs.
    together, run = (1, in_features) if kernel_layout == 90 else (4, 64)
    place = torch.arange(together * in_features)
    word, half_byte = place // 8, place % 8
    position = 8 * word + torch.where(half_byte < 4, 2 * half_byte, 2 * (half_byte - 4) + 1)  # evens first, then odds
    tile, rest = position // (together * run), position % (together * run)
    output, step = rest // run, run * tile + rest % run
    block, within = step // 32, step % 32
    thread, eight, member = within // 8, within % 8 // 2, within % 2
    source = output * in_features + 32 * block + 8 * eight + 2 * thread + member
    strips = torch.empty(out_features // together, together * in_features, dtype=torch.int8)
    strips[:, source] = halves.view(strips.shape)
    return strips.view(out_features, in_features)


def _with_pre_quant_scale(weight: QuantizedLinear, pre_quant_scale_I: Tensor) -> QuantizedLinear:
    """Ones are nothing: scales that are folded into what makes the input leave them."""
    return (
        weight if bool((pre_quant_scale_I == 1).all()) else replace(weight, pre_quant_scale=pre_quant_scale_I.float())
    )


def split_outputs(shard: Shard, rows: Sequence[int]) -> list[Shard]:
    """A share of q, k and v, one after the other, as three."""
    sections = list(rows)
    biases = [None] * len(rows) if shard.bias is None else list(shard.bias.split(sections))
    weights: list[Any]
    if isinstance(shard.weight, Tensor):
        weights = list(shard.weight.split(sections))
    else:
        whole = shard.weight
        zeros = [None] * len(rows) if whole.zero_point is None else list(whole.zero_point.split(sections))
        pairs = zip(_split(whole.qweight, sections), whole.scale.split(sections), zeros, strict=True)
        weights = [replace(whole, qweight=qweight, scale=scale, zero_point=zero) for qweight, scale, zero in pairs]
    return [Shard(weight, bias) for weight, bias in zip(weights, biases, strict=True)]


def _split(qweight: Tensor, sections: list[int]) -> list[Tensor]:
    return [part.contiguous() for part in qweight.split(sections)]


def join(name: str, shards: Sequence[Shard], inputs: bool) -> Shard:
    """The linear that GPUs share along its outputs, or its `inputs`.

    Raises:
        BundleError: GPUs disagree about what they all hold.
    """
    first = shards[0]
    axis = 1 if inputs else 0
    biases = [shard.bias for shard in shards if shard.bias is not None]
    bias = None if not biases else biases[0] if inputs else torch.cat(biases)
    if isinstance(first.weight, Tensor):
        return Shard(torch.cat([shard.weight for shard in shards if isinstance(shard.weight, Tensor)], axis), bias)
    linears = [shard.weight for shard in shards if isinstance(shard.weight, QuantizedLinear)]
    whole = first.weight
    cut_scale = not inputs or whole.group_size is not None
    if not cut_scale and any(not torch.equal(whole.scale, other.scale) for other in linears):
        raise BundleError("GPUs disagree about the scales of a linear that they share.", where=name)
    if whole.input_scale is not None and any(other.input_scale != whole.input_scale for other in linears):
        raise BundleError("GPUs disagree about the scale of a linear's input.", where=name)
    zeros = [linear.zero_point for linear in linears if linear.zero_point is not None]
    return Shard(
        replace(
            whole,
            pre_quant_scale=_join_pre_quant_scales(name, linears, inputs),
            qweight=torch.cat([linear.qweight for linear in linears], axis),
            scale=torch.cat([linear.scale for linear in linears], axis) if cut_scale else whole.scale,
            zero_point=torch.cat(zeros, axis) if zeros else None,
        ),
        bias,
    )


def _join_pre_quant_scales(name: str, linears: Sequence[QuantizedLinear], inputs: bool) -> Tensor | None:
    """What the input is multiplied by: each GPU has that of its own inputs. Where it has none, ones."""
    factors = [linear.pre_quant_scale for linear in linears]
    if all(factor is None for factor in factors):
        return None
    whole = [torch.ones(q.shape[1]) if f is None else f for q, f in zip(linears, factors, strict=True)]
    if inputs:
        return torch.cat(whole)
    if any(not torch.equal(whole[0], other) for other in whole):
        raise BundleError("GPUs disagree about the factors on a linear's input.", where=name)
    return whole[0]
