"""4-bit weights as TensorRT-LLM stores them.

AWQ's are plain: two neighboring output channels to a byte, the even one in the low half, two's complement.
`[out / 2, in]` int8; the loader permutes them for the GPU that it runs on.

GPTQ's are not touched by the loader any more, so they lie as the mixed-precision GEMM kernel reads them, which depends
on the GPU: see `interleave`.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from r1v_export.checkpoint.quantized.int4_packing import BLOCK_VALUES, pack_pairs
from r1v_export.checkpoint.row_threads import each_part

KernelLayout = Literal[80, 90]
"""Compute capability that weights are laid out for: 90 is Hopper, 80 everything else that TensorRT-LLM runs on."""

ROWS_PER_TILE = 64
"""Input channels of a tile of the kernels before Hopper, which read four output channels at a time."""
COLUMNS_TOGETHER = 4


def pack_outputs(qweight_OI: Tensor) -> Tensor:
    """int8 values [out, in], -8..7 -> int8 [out / 2, in]."""
    return pack_pairs(qweight_OI, axis=0).view(torch.int8)


def interleave(qweight_OI: Tensor, layout: KernelLayout) -> Tensor:
    """int8 values [out, in], -8..7 -> uint8 [in, out / 2] as the 16-bit-activation kernel reads them.

    Within each 32 input channels, those of one matrix instruction, a thread finds the ones that it multiplies with its
    share of 16-bit activations next to each other: pairs (2t, 2t + 1), 8 apart, for thread t = 0 .. 3. The weight is
    laid out by output channel, before Hopper with tiles of 64 input channels of 4 output channels in turn, and values
    are made unsigned (+8), the even ones of each eight in the low halves of a word: the order in which the kernel turns
    them into floats.

    `in` is a multiple of 64, `out` of 8. On device "meta" only the shape counts.
    """
    out_features, in_features = qweight_OI.shape
    pairs = torch.empty(out_features, in_features // 2, dtype=torch.uint8, device=qweight_OI.device)
    # Tiles are of so many output channels.
    rows_at_once = COLUMNS_TOGETHER * max(1, BLOCK_VALUES // (COLUMNS_TOGETHER * in_features))

    def interleave_part(part: range) -> None:
        stop = COLUMNS_TOGETHER * part.stop
        for start in range(COLUMNS_TOGETHER * part.start, stop, rows_at_once):
            block = slice(start, min(start + rows_at_once, stop))
            pairs[block].view(-1).copy_(_interleaved(qweight_OI[block], layout))

    if not pairs.is_meta:
        each_part(out_features // COLUMNS_TOGETHER, interleave_part)
    return pairs.view(in_features, out_features // 2)


def _interleaved(qweight_OI: Tensor, layout: KernelLayout) -> Tensor:
    """Some output channels of a weight, a multiple of four, as `interleave` has them; uint8 [out * in / 2]."""
    rows = len(qweight_OI)
    pairs = (qweight_OI + 8).contiguous().view(torch.int16).view(rows, -1, 4, 4)  # of 32 channels: block of 8, thread
    ordered = pairs.transpose(2, 3)
    if layout != 90:
        tiles = ordered.reshape(rows // COLUMNS_TOGETHER, COLUMNS_TOGETHER, -1, ROWS_PER_TILE // 2)
        ordered = tiles.transpose(1, 2)
    # Eight values of a word, a byte each: the next even one is two bytes further, and goes into the high half.
    values = ordered.reshape(-1, 4).view(torch.int64)
    halves = (values | values >> 12).view(torch.uint8).view(-1, 2, 4)
    return halves[:, :, :2].transpose(1, 2).flatten()  # evens, then odds
