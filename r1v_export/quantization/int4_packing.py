"""Two 4-bit codes to a byte, along the input features; the even one in the low half."""

from __future__ import annotations

import torch
from torch import Tensor


def pack(qweight: Tensor) -> Tensor:
    """int8 codes [out, in], -8..7 or 0..15 -> uint8 [out, in / 2]."""
    nibbles = qweight.to(torch.uint8) & 0xF
    return nibbles[:, ::2] | nibbles[:, 1::2] << 4


def unpack(packed: Tensor, signed: bool) -> Tensor:
    """The inverse of `pack`: uint8 [out, in / 2] -> int8 [out, in], -8..7 where signed, else 0..15."""
    qweight = torch.stack((packed & 0xF, packed >> 4), dim=-1).flatten(1).to(torch.int8)
    return (qweight ^ 8) - 8 if signed else qweight
