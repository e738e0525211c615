"""4-bit values in the bytes and words that they are packed into."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

BITS = 4


def unpack(words: Tensor, axis: int, order: Sequence[int]) -> Tensor:
    """Unpack 4-bit values from words: int8, 0..15, `len(order)` times as many along `axis`.

    Args:
        words: [a, b] integers, each `4 * len(order)` bits wide.
        axis: along which the values of a word follow each other.
        order: value `order[i]` of a word is in its i-th four bits, counted from the lowest.
    """
    qweight = [(words >> BITS * order.index(value)) & 0xF for value in range(len(order))]
    return torch.stack([value.to(torch.int8) for value in qweight], dim=axis + 1).flatten(axis, axis + 1)


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
