"""Packed 4-bit values, compared with a loop over single values; packing loses nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from r1v_export.checkpoint.quantized import int4_packing
from r1v_export.checkpoint.quantized.int4_packing import pack_pairs, unpack, unpack_pairs


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


@pytest.mark.parametrize("axis", [0, 1])
def test_words_hold_four_values_of_8_bits(axis):
    words = torch.randint(-(2**31), 2**31, (3, 5), generator=torch.Generator().manual_seed(0)).to(torch.int32)
    held = words.numpy() if axis else words.numpy().T.copy()
    expected = held.view("<u1")
    found = unpack(words, axis, (0, 1, 2, 3), bits=8).numpy()
    np.testing.assert_array_equal(found, expected if axis else expected.T)


def test_bytes_hold_two_values():
    assert unpack(torch.tensor([[0xF1]], dtype=torch.uint8), 0, (0, 1)).tolist() == [[1], [15]]


@settings(deadline=None)
@given(rows=st.integers(1, 5), pairs=st.integers(1, 40), signed=st.booleans(), seed=st.integers(0, 2**31))
def test_packed_quantized_values_come_back_as_they_were(rows: int, pairs: int, signed: bool, seed: int) -> None:
    low, high = (-8, 8) if signed else (0, 16)
    generator = torch.Generator().manual_seed(seed)
    qweight = torch.randint(low, high, (rows, 2 * pairs), generator=generator, dtype=torch.int8)
    packed = pack_pairs(qweight)
    assert packed.shape == (rows, pairs)
    assert packed.dtype == torch.uint8
    assert torch.equal(unpack_pairs(packed, signed), qweight)


@pytest.mark.parametrize(("qweight", "byte"), [((1, 2), 0x21), ((-1, -8), 0x8F), ((15, 0), 0x0F)])
def test_the_even_value_is_the_low_half(qweight: tuple[int, int], byte: int) -> None:
    assert pack_pairs(torch.tensor([qweight], dtype=torch.int8)).item() == byte


@pytest.mark.parametrize("rows", [2, 6, 130])
def test_rows_pack_as_their_transposes_columns(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(int4_packing, "BLOCK_VALUES", 100)
    qweight = torch.randint(-8, 8, (rows, 24), generator=torch.Generator().manual_seed(rows), dtype=torch.int8)
    packed = pack_pairs(qweight, axis=0)
    assert torch.equal(packed, pack_pairs(qweight.T).T)
    bytes_ = [
        [(int(e) & 15) | (int(o) & 15) << 4 for e, o in zip(*pair, strict=True)] for pair in qweight.view(-1, 2, 24)
    ]
    assert packed.tolist() == bytes_


def test_one_row_packs_whatever_its_strides() -> None:
    row = torch.arange(8, dtype=torch.int8)[:, None].T
    assert row.stride(0) == 1
    assert pack_pairs(row).tolist() == [[0x10, 0x32, 0x54, 0x76]]


@pytest.mark.parametrize("axis", [0, 1])
def test_a_weight_without_data_is_not_packed_block_by_block(axis: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shapes of all weights are known before the first is read: of a 38B that took minutes."""
    packed = pack_pairs(torch.zeros(256, 128, dtype=torch.int8), axis)
    monkeypatch.setattr(int4_packing, "each_part", None)
    blank = pack_pairs(torch.empty(256, 128, dtype=torch.int8, device="meta"), axis)
    assert (blank.dtype, blank.shape, blank.is_meta) == (packed.dtype, packed.shape, True)


@pytest.mark.parametrize("axis", [0, 1])
def test_words_are_unpacked_a_few_rows_at_a_time(axis: int, monkeypatch: pytest.MonkeyPatch) -> None:
    words = torch.arange(7 * 5, dtype=torch.int32).reshape(7, 5) * 2**27 + 12345
    whole = unpack(words, axis, (0, 2, 4, 6, 1, 3, 5, 7))
    monkeypatch.setattr(int4_packing, "BLOCK_VALUES", 2 * 5 * 8)
    assert torch.equal(unpack(words, axis, (0, 2, 4, 6, 1, 3, 5, 7)), whole)
