from __future__ import annotations

import mmap
import sys
from pathlib import Path

import numpy as np
import pytest

from r1v_export.targets.onnxruntime.runtime.cache_memory import CacheMemory
from r1v_export.weights_memory import HUGE_PAGE_BYTES, resident_bytes

FLOAT32 = np.dtype(np.float32)
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="counts the pages of a process as Linux does")


@linux_only
def test_it_takes_the_memory_of_the_slots_in_use():
    """Of 64 heads with 131,072 slots, 4 GB, 100 are written: 3.3 MB, where a huge page for each head is 134 MB."""
    before_bytes = resident_bytes()
    memory = CacheMemory((1, 64, 131072, 128), FLOAT32)
    memory.array_BKCD[:, :, :100] = 1.0
    taken_bytes = resident_bytes() - before_bytes
    assert 100 * 64 * 128 * 4 <= taken_bytes < 16 << 20


@linux_only
def test_rows_are_added_without_a_copy_and_what_gone_ones_held_is_given_back():
    memory = CacheMemory((2, 8, 4096, 64), FLOAT32)
    memory.array_BKCD[:] = np.arange(2, dtype=np.float32)[:, None, None, None]
    filled_bytes = resident_bytes()
    memory.set_rows(64)
    assert resident_bytes() - filled_bytes < 4 << 20
    assert memory.array_BKCD.shape == (64, 8, 4096, 64)
    assert memory.array_BKCD[:2, 3, -1, 5].tolist() == [0.0, 1.0]
    assert not memory.array_BKCD[63, 7, -1].any()
    memory.set_rows(1)
    assert filled_bytes - resident_bytes() > 7 << 20
    assert not memory.array_BKCD.any()


@linux_only
def test_pages_behind_the_tokens_that_stay_are_given_back():
    memory = CacheMemory((2, 4, 8192, 64), FLOAT32)
    memory.array_BKCD[:] = 1.0
    filled_bytes = resident_bytes()
    memory.release([100, 0])
    assert filled_bytes - resident_bytes() > 15 << 20
    page_slots = mmap.PAGESIZE // (64 * 4)
    assert memory.array_BKCD[0, :, :100].all()
    assert not memory.array_BKCD[0, :, 100 + page_slots :].any()
    assert not memory.array_BKCD[1].any()


def bytes_of(memory: CacheMemory, field: str) -> int:
    """Of what the system counts of its range: `Rss`, or `AnonHugePages` of that."""
    here = False
    for line in Path("/proc/self/smaps").read_text(encoding="utf-8").splitlines():
        first, *others = line.split(maxsplit=5)
        if not first.endswith(":"):
            begin, end = (int(each, 16) for each in first.split("-"))
            here = begin <= memory.address < end
        elif here and first == f"{field}:":
            return int(others[0]) * 1024
    return 0


@linux_only
def test_slots_that_fill_huge_pages_are_brought_into_them_and_others_take_no_more_memory():
    """Two heads of 16,384 slots in use, 8 MB each: three or four huge pages of each, as they happen to lie."""
    memory = CacheMemory((1, 2, 65536, 128), FLOAT32)
    memory.array_BKCD[:, :, :16384] = np.arange(16384, dtype=np.float32)[:, None]
    memory.settle(0, 0, 8000)
    memory.settle(0, 8000, 16384)
    if not bytes_of(memory, "AnonHugePages"):
        pytest.skip("this system gives no huge pages")
    assert 6 * HUGE_PAGE_BYTES <= bytes_of(memory, "AnonHugePages") <= 8 * HUGE_PAGE_BYTES
    assert bytes_of(memory, "Rss") == 2 * 16384 * 128 * 4
    np.testing.assert_array_equal(memory.array_BKCD[0, 1, :16384, 7], np.arange(16384))
    assert not memory.array_BKCD[:, :, 16384:16400].any()
    memory.set_rows(3)  # still one range, which the system moves
    assert memory.array_BKCD[0, 0, 16383, 0] == 16383


def test_slots_that_share_a_page_with_another_head_stay():
    """A head of 3 slots of 48 bytes is less than a page: nothing can be given back without taking its neighbors'."""
    memory = CacheMemory((2, 2, 3, 12), FLOAT32)
    memory.array_BKCD[:] = 1.0
    memory.release([0, 3])
    assert memory.array_BKCD[1].all()


def test_it_does_not_move_under_who_looks_into_it():
    memory = CacheMemory((1, 2, 64, 16), FLOAT32)
    row_KCD = memory.array_BKCD[0]
    with pytest.raises(BufferError):
        memory.set_rows(4)
    row_KCD[0, 0, 0] = 7.0
    assert memory.array_BKCD[0, 0, 0, 0] == 7.0


def test_more_addresses_than_there_are_raise_an_error():
    with pytest.raises(OSError, match="memory"):
        CacheMemory((1 << 20, 64, 131072, 128), FLOAT32)
