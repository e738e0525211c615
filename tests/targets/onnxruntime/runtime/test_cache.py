from __future__ import annotations

import numpy as np
import pytest

from r1v_export.contract import Sizes
from r1v_export.targets.onnxruntime.runtime import cache_memory
from r1v_export.targets.onnxruntime.runtime.cache import HostCache

SIZES = Sizes(8, 1, 4, 16, 32, layers=2, kv_heads=2, head_dim=16)
FLOAT32 = np.dtype(np.float32)
MOST = 4096


def filled(most_slots: int | None) -> HostCache:
    """Two rows of 8 slots that hold 5 and 3 tokens; a number says tensor, row, head and slot."""
    cache = HostCache(SIZES, FLOAT32, batch=2, capacity=8, most_slots=most_slots)
    for tensor, cache_BKCD in enumerate(cache.contents()):
        for row, length in enumerate([5, 3]):
            cache_BKCD[row, :, :length] = number(tensor, row, np.arange(length))
    return cache


def number(tensor: int, row: int, slots: np.ndarray) -> np.ndarray:
    heads_K = np.arange(SIZES.kv_heads)
    return (1000 * tensor + 100 * row + 10 * heads_K[:, None] + slots[None])[..., None] + np.zeros(SIZES.head_dim)


def assert_holds(cache: HostCache, tokens: dict[int, tuple[int, int]]) -> None:
    """Args: tokens: row -> the row whose tokens it holds, and how many."""
    for tensor, cache_BKCD in enumerate(cache.contents()):
        for row, (source, length) in tokens.items():
            expected_KCD = number(tensor, source, np.arange(length))
            np.testing.assert_array_equal(cache_BKCD[row, :, :length], expected_KCD)


@pytest.mark.parametrize("most_slots", [None, MOST])
def test_rows_keep_their_tokens_however_the_cache_changes(most_slots):
    cache = filled(most_slots)
    cache.resize(5, 64, [5, 3, 0, 0, 0])
    assert_holds(cache, {0: (0, 5), 1: (1, 3)})
    cache.copy_row(0, 4, 4)
    cache.swap_rows(0, 1, 5)
    assert_holds(cache, {0: (1, 3), 1: (0, 5), 4: (0, 4)})
    cache.resize(2, 8, [3, 4])
    assert_holds(cache, {0: (1, 3), 1: (0, 4)})


def test_buffers_are_where_the_tensors_lie():
    cache = filled(MOST)
    for buffer, tensor_BKCD in zip(cache.buffers(1, 1), cache.contents(), strict=True):
        assert buffer.address == tensor_BKCD[1].ctypes.data
        assert buffer.shape == (1, *tensor_BKCD.shape[1:])
        assert buffer.dtype == FLOAT32


def test_a_cache_with_room_for_all_positions_does_not_move_when_it_grows():
    cache = filled(MOST)
    before = cache.buffers(0, 2)
    cache.resize(2, MOST, [5, 3])
    assert cache.buffers(0, 2) == before
    assert before[0].shape[2] == MOST


def test_one_without_has_the_slots_that_are_asked_for():
    cache = filled(None)
    cache.resize(2, 64, [5, 3])
    assert {tensor_BKCD.shape[2] for tensor_BKCD in cache.contents()} == {64}


def test_where_the_system_has_no_addresses_for_all_positions_it_has_those_that_are_asked_for(monkeypatch):
    make = cache_memory._map

    def strict(size_bytes: int):
        if size_bytes > 1 << 16:
            raise OSError(12, "Cannot allocate memory")
        return make(size_bytes)

    monkeypatch.setattr(cache_memory, "_map", strict)
    cache = filled(MOST)
    cache.resize(3, 16, [5, 3, 0])
    assert {tensor_BKCD.shape for tensor_BKCD in cache.contents()} == {(3, 2, 16, 16)}
    assert_holds(cache, {0: (0, 5), 1: (1, 3)})


def test_a_cache_that_something_looks_into_is_copied():
    cache = filled(MOST)
    held = cache.contents()
    cache.resize(4, 64, [5, 3, 0, 0])
    assert_holds(cache, {0: (0, 5), 1: (1, 3)})
    assert held[0].shape[0] == 2
