"""Quantized values as blocks of GGUF's types Q8_0, Q4_0 and Q4_1, and plain tensors in any type.

A block is 32 values of a row with one scale d, in half precision, and in Q4_1 a minimum m: w = d q, d (q - 8), d q + m.
Values stay bit for bit what the calibration made them. Its scales, float32, are rounded to half precision: by at most
2^-11 of themselves from 6.1e-5 on, by at most 3e-8 below. Groups of 64 or 128 and scales per channel repeat in every
block.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import gguf
import numpy as np
from torch import Tensor

from r1v_export.quantization.quantized_linear import QuantizedLinear
from r1v_export.targets.gguf.write.half import LARGEST, half, too_large
from r1v_export.targets.gguf.write.k_quants import encode_k_quants
from r1v_export.targets.gguf.write.types import BLOCK, K_QUANTS, QUANTIZED, GgufType

_CHUNK_VALUES = 1 << 24
"""Of a plain tensor, converted at a time."""


@dataclass(frozen=True)
class Blocks:
    """A matrix of R rows of B blocks."""

    kind: GgufType
    values: Tensor
    """int8 [R, B, 32]; -8..7 in Q4_0."""
    scale: Tensor
    """float32 [R, B]; may be negative."""
    minimum: Tensor | None = None
    """float32 [R, B]; Q4_1 only."""

    def rows(self, part: slice) -> Blocks:
        """Some of the rows."""
        minimum = None if self.minimum is None else self.minimum[part]
        return replace(self, values=self.values[part], scale=self.scale[part], minimum=minimum)

    def dequantize(self) -> Tensor:
        """[R, B * 32] float32, before any rounding of scales."""
        weight = self.values.float() * self.scale[..., None]
        return (weight if self.minimum is None else weight + self.minimum[..., None]).flatten(1)


def blocks_of(linear: QuantizedLinear) -> Blocks:
    """The blocks of a quantized linear."""
    count = linear.shape[1] // BLOCK
    scale = _per_block(linear.scale, count)
    minimum = None
    if linear.zero_point is not None:
        minimum = -scale * _per_block(linear.zero_point.float(), count)
    return Blocks(QUANTIZED[linear.weight_type], linear.qweight.unflatten(1, (count, BLOCK)), scale, minimum)


def encode_blocks(blocks: Blocks, where: str) -> np.ndarray:
    """The bytes of a matrix, uint8 [R, B * bytes of a block].

    Raises:
        UsageError: a scale is too large for half precision.
    """
    halves = [blocks.scale] if blocks.minimum is None else [blocks.scale, blocks.minimum]
    parts: list[np.ndarray] = [half(values, where).half().numpy()[..., None].view(np.uint8) for values in halves]
    values = blocks.values.numpy()
    if blocks.kind == "Q8_0":
        parts.append(values.view(np.uint8))
    else:
        unsigned = (values + (8 if blocks.kind == "Q4_0" else 0)).astype(np.uint8)
        low, high = unsigned[..., : BLOCK // 2], unsigned[..., BLOCK // 2 :]
        parts.append(low | (high << 4))
    return np.concatenate(parts, axis=-1).reshape(len(blocks.values), -1)


def encode_plain(tensor: Tensor, kind: GgufType, where: str) -> np.ndarray:
    """The bytes of a plain tensor [..., I], rounded by `k_quants` or by gguf-py: uint8 [..., bytes of I values].

    Raises:
        UsageError: a value is too large for half precision.
    """
    if kind in K_QUANTS:
        return encode_k_quants(tensor, kind, where)
    qtype = gguf.GGMLQuantizationType[kind]
    flat = tensor.flatten()
    parts = []
    for chunk in flat.split(_CHUNK_VALUES):
        data = chunk.float().numpy()
        largest = float(np.abs(data).max(initial=0))
        if kind not in ("F32", "BF16") and not largest <= LARGEST:
            raise too_large(where, largest)
        parts.append(gguf.quants.quantize(data, qtype).view(np.uint8))
    data = parts[0] if len(parts) == 1 else np.concatenate(parts)
    return data.reshape(*tensor.shape[:-1], -1)


def _per_block(values: Tensor, count: int) -> Tensor:
    """[R] or [R, groups] -> [R, count]."""
    values = values[:, None] if values.ndim == 1 else values
    return values.repeat_interleave(count // values.shape[1], dim=1)
