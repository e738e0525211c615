"""Memory in huge pages keeps its content, and no more of it is taken."""

from __future__ import annotations

import ctypes
import errno
import mmap
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from r1v_export import weights_memory
from r1v_export.weights_memory import LEAST_BYTES, MADV_COLLAPSE, Settling, resident_bytes, settle

HUGE = 2 << 20
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="asks Linux for huge pages")


def mapped(length: int) -> tuple[mmap.mmap, int]:
    """Private memory, and where it begins."""
    memory = mmap.mmap(-1, length, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return memory, np.frombuffer(memory, np.uint8).ctypes.data


def kilobytes(address: int, field: str) -> int:
    """Of the mapping that holds an address, as the kernel says."""
    inside = False
    for line in Path("/proc/self/smaps").read_text(encoding="utf-8").splitlines():
        if found := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            inside = int(found[1], 16) <= address < int(found[2], 16)
        elif inside and line.startswith(f"{field}:"):
            return int(line.split()[1])
    raise AssertionError(f"no mapping of {address:x}")


def has_no_huge_page() -> bool:
    """Whether the kernel says that it has none at the moment, asked without the module under test."""
    memory, address = mapped(2 * HUGE)
    np.frombuffer(memory, np.uint8)[:] = 1
    start = ctypes.c_void_p(-(-address // HUGE) * HUGE)
    failed = ctypes.CDLL(None, use_errno=True).madvise(start, ctypes.c_size_t(HUGE), MADV_COLLAPSE) != 0
    return failed and ctypes.get_errno() in (errno.ENOMEM, errno.EAGAIN, errno.EBUSY)


def test_memory_in_use_comes_into_huge_pages_and_keeps_its_content():
    memory, address = mapped(8 * HUGE)
    values = np.frombuffer(memory, np.uint64)
    values[:] = np.arange(len(values))
    middle = address + 4 * HUGE
    before_kb = kilobytes(middle, "AnonHugePages")
    settle()
    moved = kilobytes(middle, "AnonHugePages") >= before_kb + 4 * HUGE // 1024
    np.testing.assert_array_equal(values, np.arange(len(values)))
    if not moved and has_no_huge_page():
        pytest.skip("the kernel has no huge page to give at the moment")
    assert moved


def test_memory_that_is_mostly_not_there_stays_so():
    memory, address = mapped(8 * HUGE)
    values = np.frombuffer(memory, np.uint8)
    values[:: 2 * mmap.PAGESIZE] = 1
    middle = address + 4 * HUGE
    before_kb = kilobytes(middle, "Rss")
    settle()
    assert kilobytes(middle, "Rss") <= before_kb  # less where the mapping has neighbors that the heap gives up


def test_it_is_done_once_and_for_large_weights_only(monkeypatch):
    done = []
    monkeypatch.setattr(weights_memory, "settle", lambda: done.append(1))
    for weights_bytes, times in ((LEAST_BYTES - 1, 0), (LEAST_BYTES, 1)):
        settling = Settling(weights_bytes)
        for _ in range(3):
            settling.begin()
            if settling.thread:
                settling.thread.join()
        assert len(done) == times


def test_a_system_without_the_files_of_linux_changes_nothing(monkeypatch, tmp_path):
    monkeypatch.setattr(weights_memory, "_SELF", tmp_path)
    settle()
    assert resident_bytes() == 0
