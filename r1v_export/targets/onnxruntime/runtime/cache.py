"""Keys and values of a decoder: each pair of past and present tensors of the graph in one buffer.

Letters: B rows, K key-value heads, C slots, D head_dim.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from r1v_export import contract
from r1v_export.config import Device
from r1v_export.contract import Sizes
from r1v_export.targets.onnxruntime.library import ort
from r1v_export.targets.onnxruntime.runtime.cache_memory import CacheMemory

SETTLED_TOGETHER = 512
"""New tokens of a row that are brought into huge pages together: as many as a piece of a prompt has."""


class CacheBuffer(NamedTuple):
    """A past and a present tensor of the decoder in one place: the address of an array [rows, kv_heads, capacity,
    head_dim]."""

    past: str
    present: str
    shape: tuple[int, ...]
    address: int
    dtype: np.dtype[Any]


class DecoderCache(Protocol):
    """All tensors of a decoder's cache."""

    def buffers(self, first_row: int, rows: int) -> list[CacheBuffer]:
        """The part of each tensor that some rows are; until the next `resize`."""
        ...

    def contents(self) -> list[np.ndarray]:
        """Each tensor [B, K, C, D], which may have more slots than were asked for: itself on the CPU, a copy of a
        GPU's."""
        ...

    def settle(self, first_row: int, lengths: Iterable[int]) -> None:
        """Bring many new tokens of rows that have so many into pages that are read faster."""
        ...

    def copy_row(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` slots of a row to another."""
        ...

    def swap_rows(self, a: int, b: int, length: int) -> None:
        """Exchange the first `length` slots of two rows."""
        ...

    def resize(self, batch: int, capacity: int, lengths: Sequence[int]) -> None:
        """Have so many rows and slots; row b keeps its first `lengths[b]` slots."""
        ...


def open_cache(
    sizes: Sizes, dtype: np.dtype[Any], device: Device, batch: int, capacity: int, most_slots: int | None
) -> DecoderCache:
    """An empty cache.

    Args:
        dtype: of its numbers.
        batch, capacity: rows, and slots of each that are asked for.
        most_slots: that a row will ever have, where attention leaves slots that are not in use alone; None where it
            computes over all that there are.
    """
    if device == "cpu":
        return HostCache(sizes, dtype, batch, capacity, most_slots)
    return DeviceCache(sizes, dtype, device, batch, capacity)


class HostCache:
    """On the CPU: with `most_slots` it takes the memory of the slots in use, and grows without being copied.

    Where the system has no addresses for that, or attention computes over all slots, it has those that are asked for,
    and is copied when they become more.
    """

    def __init__(
        self, sizes: Sizes, dtype: np.dtype[Any], batch: int, capacity: int, most_slots: int | None = None
    ) -> None:
        self._pairs, self._sizes, self._dtype = contract.cache_pairs(sizes.layers), sizes, dtype
        try:
            self._memories = self._mapped(batch, max(capacity, most_slots or 0))
        except OSError:
            self._memories = self._mapped(batch, capacity)
        self._settled: dict[int, int] = {}
        """Slots of each row that are in huge pages as far as they fill some."""

    def buffers(self, first_row: int, rows: int) -> list[CacheBuffer]:
        return [
            CacheBuffer(*pair, (rows, *memory.shape[1:]), memory.address + first_row * row_bytes, self._dtype)
            for pair, memory in zip(self._pairs, self._memories, strict=True)
            for row_bytes in [memory.array_BKCD.strides[0]]
        ]

    def contents(self) -> list[np.ndarray]:
        return [memory.array_BKCD for memory in self._memories]

    def settle(self, first_row: int, lengths: Iterable[int]) -> None:
        for row, length in enumerate(lengths, first_row):
            settled = min(self._settled.get(row, 0), length)
            if length - settled >= SETTLED_TOGETHER:
                for memory in self._memories:
                    memory.settle(row, settled, length)
                settled = length
            self._settled[row] = settled

    def copy_row(self, source: int, target: int, length: int) -> None:
        self._settled.pop(target, None)
        for cache_BKCD in self.contents():
            cache_BKCD[target, :, :length] = cache_BKCD[source, :, :length]

    def swap_rows(self, a: int, b: int, length: int) -> None:
        for cache_BKCD in self.contents():
            cache_BKCD[[a, b], :, :length] = cache_BKCD[[b, a], :, :length]

    def resize(self, batch: int, capacity: int, lengths: Sequence[int]) -> None:
        self._settled.clear()
        for index, memory in enumerate(self._memories):
            # One tensor after the other, so that little is there twice.
            if capacity <= memory.shape[2] and _moved(memory, batch):
                memory.release(lengths)
            else:
                self._memories[index] = self._copied(memory, batch, capacity, lengths)

    def _copied(self, old: CacheMemory, batch: int, capacity: int, lengths: Sequence[int]) -> CacheMemory:
        new = CacheMemory(self._shape(batch, capacity), self._dtype)
        for row, length in enumerate(lengths[: old.shape[0]]):
            new.array_BKCD[row, :, :length] = old.array_BKCD[row, :, :length]
        return new

    def _mapped(self, batch: int, slots: int) -> list[CacheMemory]:
        return [CacheMemory(self._shape(batch, slots), self._dtype) for _ in self._pairs]

    def _shape(self, batch: int, slots: int) -> tuple[int, int, int, int]:
        return batch, self._sizes.kv_heads, slots, self._sizes.head_dim


def _moved(memory: CacheMemory, rows: int) -> bool:
    """Whether the memory has so many rows now; not where something else looks into it, or systems cannot move it."""
    try:
        memory.set_rows(rows)
    except (OSError, BufferError, SystemError):
        return False
    return True


class DeviceCache:
    """In a GPU's memory: rows are moved through the host's, and a cache that grows is copied."""

    def __init__(self, sizes: Sizes, dtype: np.dtype[Any], device: Device, batch: int, capacity: int) -> None:
        self._pairs, self._sizes, self._dtype, self._device = contract.cache_pairs(sizes.layers), sizes, dtype, device
        self._values = [self._zeros(batch, capacity) for _ in self._pairs]

    def buffers(self, first_row: int, rows: int) -> list[CacheBuffer]:
        return [
            CacheBuffer(*pair, (rows, *shape), value.data_ptr() + first_row * row_bytes, self._dtype)
            for pair, value in zip(self._pairs, self._values, strict=True)
            for shape in [tuple(value.shape()[1:])]
            for row_bytes in [int(np.prod(shape)) * self._dtype.itemsize]
        ]

    def contents(self) -> list[np.ndarray]:
        return [value.numpy() for value in self._values]

    def settle(self, first_row: int, lengths: Iterable[int]) -> None:
        """A GPU's memory lies where it lies."""

    def copy_row(self, source: int, target: int, length: int) -> None:
        for value in self._values:
            cache_BKCD = value.numpy()
            cache_BKCD[target, :, :length] = cache_BKCD[source, :, :length]
            value.update_inplace(cache_BKCD)

    def swap_rows(self, a: int, b: int, length: int) -> None:
        for value in self._values:
            cache_BKCD = value.numpy()
            cache_BKCD[[a, b], :, :length] = cache_BKCD[[b, a], :, :length]
            value.update_inplace(cache_BKCD)

    def resize(self, batch: int, capacity: int, lengths: Sequence[int]) -> None:
        for index, value in enumerate(self._values):
            # One tensor after the other, so that little is there twice.
            old_BKCD, new = value.numpy(), self._zeros(batch, capacity)
            new_BKCD = new.numpy()
            for row, length in enumerate(lengths[: len(old_BKCD)]):
                new_BKCD[row, :, :length] = old_BKCD[row, :, :length]
            new.update_inplace(new_BKCD)
            self._values[index] = new

    def _zeros(self, batch: int, capacity: int) -> ort.OrtValue:
        shape = (batch, self._sizes.kv_heads, capacity, self._sizes.head_dim)
        return ort.OrtValue.ortvalue_from_numpy(np.zeros(shape, self._dtype), self._device)
