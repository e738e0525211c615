"""What constants of compiled graphs are in: most are mapped files, whose pages are let go where they can be."""

from __future__ import annotations

import mmap
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

_EVERY_S = 0.02
"""OpenVINO reads some 20 MB meanwhile."""


class HeldWeights:
    """Arrays that OpenVINO reads from as long as a graph is used, without keeping them.

    It packs matrices of its own from them in the graph's first run; pages of mapped files that it has read are let go
    then, so that the whole is in memory once. What is read later comes back from the file.
    """

    def __init__(self, arrays: Iterable[np.ndarray]) -> None:
        self.arrays = list(arrays)
        self.is_packed = False
        """Whether the graph has run."""

    def forget(self) -> None:
        """Let the pages of mapped files go."""
        for mapped in {id(found): found for found in map(_mapping, self.arrays) if found is not None}.values():
            _forget(mapped)

    @contextmanager
    def packing(self) -> Iterator[None]:
        """A run of the graph, in the block."""
        if self.is_packed:
            yield
            return
        done = threading.Event()

        def forget_now_and_then() -> None:
            while not done.wait(_EVERY_S):
                self.forget()

        thread = threading.Thread(target=forget_now_and_then, daemon=True)
        thread.start()
        try:
            yield
            self.is_packed = True
        finally:
            done.set()
            thread.join()
            self.forget()


def forget_pages(content: np.ndarray) -> None:
    """Let the pages of a mapped file go, which come back from the file where they are read again.

    Args:
        content: [bytes] uint8, or a part of them; nothing happens to an array that is no mapped file.
    """
    if (mapped := _mapping(content)) is not None:
        _forget(mapped)


def _mapping(content: np.ndarray) -> mmap.mmap | None:
    """The mapped file that an array is a part of."""
    base: Any = content
    while isinstance(base, np.ndarray):
        base = base.base
    mapped = base.obj if isinstance(base, memoryview) else base
    return mapped if isinstance(mapped, mmap.mmap) else None


def _forget(mapped: mmap.mmap) -> None:
    if hasattr(mmap, "MADV_DONTNEED"):
        mapped.madvise(mmap.MADV_DONTNEED)
