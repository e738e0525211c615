"""Packing two 4-bit codes into a byte loses nothing and puts them where readers look."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from r1v_export.quantization.int4_packing import pack, unpack


@settings(deadline=None)
@given(rows=st.integers(1, 5), pairs=st.integers(1, 40), signed=st.booleans(), seed=st.integers(0, 2**31))
def test_packed_quantized_values_come_back_as_they_were(rows: int, pairs: int, signed: bool, seed: int) -> None:
    low, high = (-8, 8) if signed else (0, 16)
    generator = torch.Generator().manual_seed(seed)
    qweight = torch.randint(low, high, (rows, 2 * pairs), generator=generator, dtype=torch.int8)
    packed = pack(qweight)
    assert packed.shape == (rows, pairs)
    assert packed.dtype == torch.uint8
    assert torch.equal(unpack(packed, signed), qweight)


@pytest.mark.parametrize(("qweight", "byte"), [((1, 2), 0x21), ((-1, -8), 0x8F), ((15, 0), 0x0F)])
def test_the_even_code_is_the_low_half(qweight: tuple[int, int], byte: int) -> None:
    assert pack(torch.tensor([qweight], dtype=torch.int8)).item() == byte
