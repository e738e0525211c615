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

from r1v_export.checkpoint.quantized.int4_packing import pack_pairs

KernelLayout = Literal[80, 90]
"""Compute capability that weights are laid out for: 90 is Hopper, 80 everything else that TensorRT-LLM runs on."""

ROWS_PER_MMA = 32
"""Input channels that one matrix instruction takes of 4-bit weights."""
ROWS_PER_TILE = 64
"""Input channels of a tile of the kernels before Hopper, which read four output channels at a time."""
COLUMNS_TOGETHER = 4


def pack_outputs(qweight_OI: Tensor) -> Tensor:
    """int8 values [out, in], -8..7 -> int8 [out / 2, in]."""
    return pack_pairs(qweight_OI, axis=0).view(torch.int8)


def mma_order() -> Tensor:
    """[32] int64: which input channel of 32 stands at each place, so that a thread finds those that it multiplies with
    its share of 16-bit activations next to each other: pairs (2t, 2t + 1), 8 apart, for thread t = 0 .. 3."""
    pairs = torch.arange(ROWS_PER_MMA).view(4, 4, 2)  # 8-channel block, thread, member of the pair
    return pairs.transpose(0, 1).reshape(-1)


def interleave(qweight_OI: Tensor, layout: KernelLayout) -> Tensor:
    """int8 values [out, in], -8..7 -> uint8 [in, out / 2] as the 16-bit-activation kernel reads them.

    Input channels are ordered by `mma_order` within each 32, the weight is laid out by output channel, before Hopper
    with tiles of 64 input channels of 4 output channels in turn, and values are made unsigned (+8), the even ones of
    each eight in the low halves of a word: the order in which the kernel turns them into floats.

    `in` is a multiple of 64, `out` of 8.
    """
    out_features, in_features = qweight_OI.shape
    ordered_OI = qweight_OI.unflatten(1, (-1, ROWS_PER_MMA))[:, :, mma_order()].flatten(1)
    if layout != 90:
        tiles = ordered_OI.view(out_features // COLUMNS_TOGETHER, COLUMNS_TOGETHER, -1, ROWS_PER_TILE)
        ordered_OI = tiles.transpose(1, 2).reshape(out_features, in_features)
    words = (ordered_OI + 8).to(torch.uint8).view(-1, 4, 2)  # eight values of a word: pair, member
    packed = words.transpose(1, 2).reshape(-1, 8)  # evens, then odds
    pairs: Tensor = packed[:, ::2] | packed[:, 1::2] << 4
    return pairs.view(in_features, out_features // 2)
