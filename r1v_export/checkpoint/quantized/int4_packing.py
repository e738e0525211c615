"""4-bit values in the bytes and words that they are packed into, and 8-bit values in words."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

BITS = 4


def unpack(words: Tensor, axis: int, order: Sequence[int], bits: int = BITS) -> Tensor:
    """Unpack values from words, `len(order)` times as many along `axis`: int8, 0..15, or uint8 where they have 8 bits.

    Args:
        words: [a, b] integers, each `bits * len(order)` bits wide.
        axis: along which the values of a word follow each other.
        order: value `order[i]` of a word is in its i-th `bits` bits, counted from the lowest.
        bits: 4 or 8.
    """
    dtype = torch.int8 if bits == BITS else torch.uint8
    values = [(words >> bits * order.index(value)) & (1 << bits) - 1 for value in range(len(order))]
    return torch.stack([value.to(dtype) for value in values], dim=axis + 1).flatten(axis, axis + 1)


def pack_pairs(qweight: Tensor) -> Tensor:
    """Pack two 4-bit values into each byte, along the last axis, the even one in the low half.

    Args:
        qweight: int8 [out, in], -8..7 or 0..15; `in` is even.

    Returns: uint8 [out, in / 2].
    """
    values = qweight.to(torch.uint8) & 0xF
    return values[:, ::2] | values[:, 1::2] << BITS


def unpack_pairs(packed: Tensor, signed: bool) -> Tensor:
    """The inverse of `pack_pairs`: uint8 [out, in / 2] -> int8 [out, in], -8..7 if signed, else 0..15."""
    qweight = unpack(packed, 1, (0, 1))
    return (qweight ^ 8) - 8 if signed else qweight
