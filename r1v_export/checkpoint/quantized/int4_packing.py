"""4-bit values in the bytes and words that they are packed into, and 8-bit values in words."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from r1v_export.checkpoint.row_threads import each_part

BITS = 4
BLOCK_VALUES = 1 << 17
"""Values that are unpacked or interleaved at a time, so that what is computed from them stays in a core's cache."""
_PACKED_VALUES = 1 << 19
"""Values that are packed at a time: with a quarter of them packing takes twice as long, most of it in calls."""


def unpack(words: Tensor, axis: int, order: Sequence[int], bits: int = BITS) -> Tensor:
    """Unpack values from words, `len(order)` times as many along `axis`: int8, 0..15, or uint8 where they have 8 bits.

    Args:
        words: [a, b] integers, each `bits * len(order)` bits wide.
        axis: along which the values of a word follow each other.
        order: value `order[i]` of a word is in its i-th `bits` bits, counted from the lowest.
        bits: 4 or 8.
    """
    dtype = torch.int8 if bits == BITS else torch.uint8
    places, mask = [bits * order.index(value) for value in range(len(order))], (1 << bits) - 1
    rows, columns = words.shape
    shape = (rows, len(order), columns) if axis == 0 else (rows, columns, len(order))
    values = torch.empty(shape, dtype=dtype, device=words.device)
    rows_at_once = max(1, BLOCK_VALUES // (columns * len(order)))

    def unpack_part(part: range) -> None:
        spare = torch.empty((min(rows_at_once, len(part)), columns), dtype=words.dtype, device=words.device)
        for start in part[::rows_at_once]:
            block = slice(start, min(start + rows_at_once, part.stop))
            shifted = spare[: block.stop - start]
            for value, place in enumerate(places):
                torch.bitwise_right_shift(words[block], place, out=shifted).bitwise_and_(mask)
                values[block].select(axis + 1, value).copy_(shifted)

    each_part(rows, unpack_part)
    return values.flatten(axis, axis + 1)


def pack_pairs(qweight: Tensor, axis: int = 1) -> Tensor:
    """Pack two 4-bit values, neighbors along an axis, into each byte, the even one in the low half.

    Args:
        qweight: int8 [out, in], -8..7 or 0..15; of an even size along `axis`. On device "meta" only the shape counts.
        axis: 0 or 1.

    Returns: uint8 [out / 2, in] or [out, in / 2].
    """
    out_features, in_features = qweight.shape
    rows_of_one, pack_rows = (2, _pack_rows) if axis == 0 else (1, _pack_columns)
    shape = (out_features // rows_of_one, in_features * rows_of_one // 2)
    packed = torch.empty(shape, dtype=torch.uint8, device=qweight.device)
    if packed.is_meta:
        return packed
    rows_at_once = max(1, _PACKED_VALUES // (rows_of_one * in_features))

    def pack_part(part: range) -> None:
        for start in part[::rows_at_once]:
            stop = min(start + rows_at_once, part.stop)
            pack_rows(qweight[rows_of_one * start : rows_of_one * stop], packed[start:stop])

    each_part(len(packed), pack_part)
    return packed


def _pack_rows(qweight: Tensor, packed: Tensor) -> None:
    # Four values in a word, where there are as many: on them torch is 1.4 times as fast.
    word = torch.int32 if qweight.shape[1] % 4 == 0 and qweight.is_contiguous() else torch.int8
    low, high = _bytes(word, 0x0F), _bytes(word, 0xF0)
    values, words = qweight.view(word), packed.view(word)
    torch.bitwise_left_shift(values[1::2], BITS, out=words).bitwise_and_(high).bitwise_or_(values[::2] & low)


def _pack_columns(qweight: Tensor, packed: Tensor) -> None:
    # Flat, because a single row counts as contiguous whatever its stride. The even value is in the lower byte.
    pairs = qweight.reshape(-1).contiguous().view(torch.int16).view(len(qweight), -1)
    packed.copy_((pairs >> BITS).bitwise_and_(0xF0).bitwise_or_(pairs & 0xF))


def _bytes(dtype: torch.dtype, value: int) -> int:
    """A number of an integer dtype with a value in each of its bytes."""
    return int.from_bytes([value] * dtype.itemsize, "little", signed=True)


def unpack_pairs(packed: Tensor, signed: bool) -> Tensor:
    """The inverse of `pack_pairs`: uint8 [out, in / 2] -> int8 [out, in], -8..7 if signed, else 0..15."""
    qweight = unpack(packed, 1, (0, 1))
    return (qweight ^ 8) - 8 if signed else qweight
