"""The engine's file of a head in 8 bits: how it is laid out, and how large it is. Needs no ONNX Runtime and no torch.

The quantized values [hidden, vocab] int8, then the scales [groups, vocab] float32, which begin on a page.
"""

from __future__ import annotations

HEAD_DATA = "decoder.data"
"""Its name, in the engine's folder."""

_GROUP_SIZES = (128, 64, 32)
PAGE_BYTES = 4096
_SCALE_BYTES = 4


def group_size(hidden: int) -> int | None:
    """How many inputs of the head share a scale; None where no size divides them, and the head stays as it is."""
    return next((size for size in _GROUP_SIZES if hidden % size == 0), None)


def scales_at(hidden: int, vocab: int) -> int:
    """Offset of the scales, in bytes."""
    return -(-hidden * vocab // PAGE_BYTES) * PAGE_BYTES


def head_bytes(hidden: int, vocab: int) -> int:
    """Size of the file; 0 where there is none."""
    group = group_size(hidden)
    return 0 if group is None else scales_at(hidden, vocab) + hidden // group * vocab * _SCALE_BYTES
