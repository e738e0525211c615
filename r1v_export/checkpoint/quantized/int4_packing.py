"""4-bit codes in the words that formats pack them into."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

BITS = 4


def unpack(words: Tensor, axis: int, order: Sequence[int]) -> Tensor:
    """int8 codes 0..15, `len(order)` times as many along `axis`.

    Args:
        words: [a, b] integers, each `4 * len(order)` bits wide.
        axis: along which the codes of a word follow each other.
        order: code `order[i]` of a word's lies in its i-th four bits, counted from the lowest.
    """
    qweight = [(words >> BITS * order.index(code)) & 0xF for code in range(len(order))]
    return torch.stack([code.to(torch.int8) for code in qweight], dim=axis + 1).flatten(axis, axis + 1)
