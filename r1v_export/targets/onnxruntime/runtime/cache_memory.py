"""Memory of a key-value cache on the CPU: it follows the tokens in use, and nothing is copied where the cache grows.

Letters: B rows, K key-value heads, C slots, D head_dim.
"""

from __future__ import annotations

import contextlib
import mmap
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from r1v_export.weights_memory import HUGE_PAGE_BYTES, MADV_COLLAPSE

_MAP_NORESERVE = 0x4000
"""Of Linux, in the value of most of its processors: addresses alone count as nothing. Python names it from 3.13 on."""


class CacheMemory:
    """One tensor [batch, kv_heads, slots, head_dim] of a cache: zeros that take memory from the first write on.

    Where `slots` are all that a row can ever have, tokens that are added take new pages, and rows that are added new
    addresses: neither moves what is there. Pages are the system's small ones, as a huge page at the end of each head of
    each row would be 2 GB of a model of 64 layers and 8 heads; those that are full become huge ones by `settle`.

    Args:
        shape: [B, K, C, D].

    Raises:
        OSError: the system has no such range of addresses, as where it backs each with memory.
    """

    def __init__(self, shape: Sequence[int], dtype: np.dtype[Any]) -> None:
        self.shape, self.dtype = tuple(shape), dtype
        self._mapping = _map(max(1, self._bytes(shape[0])))
        self.array_BKCD = self._view()

    @property
    def address(self) -> int:
        """Of the first number; until the next `set_rows`."""
        return int(self.array_BKCD.ctypes.data)

    def set_rows(self, rows: int) -> None:
        """Have so many rows. What the others held is given back; nothing is copied, but the address may change.

        Raises:
            OSError: the system has no such range of addresses.
            BufferError: something else still looks into it.
            SystemError: the system moves no ranges.
        """
        if rows == self.shape[0]:
            return
        del self.array_BKCD  # a mapping that something looks into does not move
        try:
            self._mapping.resize(max(1, self._bytes(rows)))
            self.shape = (rows, *self.shape[1:])
        finally:
            self.array_BKCD = self._view()

    def release(self, lengths: Sequence[int]) -> None:
        """Give back the pages behind the first `lengths[b]` slots of each row b, which are zeros again."""
        if not hasattr(self._mapping, "madvise"):
            return
        _, heads, slots, head_dim = self.shape
        slot_bytes, page = head_dim * self.dtype.itemsize, mmap.PAGESIZE
        for row, length in enumerate(lengths):
            for head in range(heads):
                begin = (row * heads + head) * slots * slot_bytes
                first, last = -(-(begin + length * slot_bytes) // page), (begin + slots * slot_bytes) // page
                if last > first:
                    self._mapping.madvise(mmap.MADV_DONTNEED, first * page, (last - first) * page)

    def settle(self, row: int, settled: int, length: int) -> None:
        """Bring the first `length` slots of a row into huge pages, as far as they fill some: attention over 16,384
        tokens is a twelfth faster. Where the system cannot, nothing changes.

        Args:
            settled: slots for which that was done before.
        """
        _, heads, slots, head_dim = self.shape
        slot_bytes, page = head_dim * self.dtype.itemsize, HUGE_PAGE_BYTES
        if sys.platform != "linux" or length * slot_bytes < page:
            return
        address = self.address
        for head in range(heads):
            begin = address + (row * heads + head) * slots * slot_bytes
            first = max(-(-begin // page), (begin + settled * slot_bytes) // page)
            last = (begin + length * slot_bytes) // page
            if last > first:
                self._collapse(first * page - address, (last - first) * page)

    def _collapse(self, start: int, length: int) -> None:
        """Ranges keep the pages that they have when they may have no new huge ones again; and are one range again,
        which is what the system moves and counts."""
        with contextlib.suppress(OSError):
            try:
                self._mapping.madvise(mmap.MADV_HUGEPAGE, start, length)
                self._mapping.madvise(MADV_COLLAPSE, start, length)
            finally:
                self._mapping.madvise(mmap.MADV_NOHUGEPAGE, start, length)

    def _bytes(self, rows: int) -> int:
        return int(np.prod([rows, *self.shape[1:]], dtype=np.int64)) * self.dtype.itemsize

    def _view(self) -> np.ndarray:
        count = self._bytes(self.shape[0]) // self.dtype.itemsize
        return np.frombuffer(self._mapping, self.dtype, count).reshape(self.shape)


def _map(size_bytes: int) -> mmap.mmap:
    if sys.platform != "linux":
        return mmap.mmap(-1, size_bytes)
    mapping = mmap.mmap(-1, size_bytes, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE)
    with contextlib.suppress(OSError):  # a kernel without huge pages
        mapping.madvise(mmap.MADV_NOHUGEPAGE)
    return mapping
