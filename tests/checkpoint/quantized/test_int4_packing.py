"""Unpacking 4-bit codes, held to a loop over single codes."""

from __future__ import annotations

import pytest
import torch

from r1v_export.checkpoint.quantized.int4_packing import unpack


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("order", [(0, 1, 2, 3, 4, 5, 6, 7), (0, 2, 4, 6, 1, 3, 5, 7)])
def test_each_code_comes_from_its_four_bits(axis, order):
    words = torch.randint(-(2**31), 2**31, (3, 5), generator=torch.Generator().manual_seed(0)).to(torch.int32)
    qweight = unpack(words, axis, order)
    assert qweight.dtype == torch.int8
    assert qweight.shape == ((24, 5) if axis == 0 else (3, 40))
    for row in range(3):
        for column in range(5):
            for place, code in enumerate(order):
                expected = (int(words[row, column]) & 0xFFFFFFFF) >> (4 * place) & 15
                found = qweight[row * 8 + code, column] if axis == 0 else qweight[row, column * 8 + code]
                assert int(found) == expected


def test_bytes_hold_two_codes():
    assert unpack(torch.tensor([[0xF1]], dtype=torch.uint8), 0, (0, 1)).tolist() == [[1], [15]]
