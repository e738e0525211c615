"""Rounded weights of a graph, kept in an entry of the user's cache folder.

OpenVINO packs matrices of its own from the weights that it is given, and these have to stay as long as the graph.
Rounded in memory they would be there twice for good; mapped from a file they are dropped once they are packed. The next
process that opens the graph has nothing to round.

An entry's file is in this order: the matrices, each at a place that can be mapped; the index, in JSON; its length,
8 bytes; and the SHA-256 of all before it, 32 bytes, without which nothing of it is used. The entry's name holds a hash
of all that decides the content: rounding, and where the weights lie in files whose path, size, inode and time of change
are known. OpenVINO, its version and the processor have no part in it.
"""

from __future__ import annotations

import hashlib
import io
import json
import mmap
import os
import struct
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from r1v_export.targets.openvino.engine_file import GraphWeights
from r1v_export.user_cache import Entry, cache_folder, digest, file_states, is_off, open_own

LEAST_BYTES = 64 << 20
"""Of rounded weights: fewer are rounded in a fifth of a second and weigh little."""
WEIGHTS = "weights.data"
"""The file, in an entry's folder."""
_FORMAT = 1
"""To be raised where weights are rounded in another way."""
_LENGTH, _HASH_BYTES = struct.Struct("<Q"), 32
_READ_BYTES = 1 << 20

Arrays: TypeAlias = Sequence[np.ndarray]
Keep: TypeAlias = Callable[[str, Callable[[], Arrays]], Arrays]
"""Gives the arrays of a name: those that are kept, or what the function makes."""


def make_anew(_: str, make: Callable[[], Arrays]) -> Arrays:
    """A `Keep` that keeps nothing."""
    return make()


def entry_of(graph: Path, bundle: Path, weights: GraphWeights, products: str, bytes_each: int) -> Entry | None:
    """Where a graph's rounded weights are kept; None if they are few, or nothing is to be kept.

    Args:
        graph: its file.
        bundle: what the weights' paths are relative to.
        products: what they are rounded to.
        bytes_each: of a rounded element.
    """
    matrices = [each for each in weights.values() if each.type == "f32" and len(each.shape) == 2]
    size_bytes = sum(each.size_bytes for each in matrices) // 4 * bytes_each
    cache = cache_folder("openvino")
    if size_bytes < LEAST_BYTES or cache is None or is_off():
        return None
    try:
        files = file_states(sorted({(bundle / each.file).resolve() for each in matrices}))
    except OSError:  # said where the file is read
        return None
    parts = sorted((name, each.model_dump_json()) for name, each in weights.items())
    group = digest(f"{graph.resolve()} {products}")
    key = digest(json.dumps([_FORMAT, sys.byteorder, products, parts, files]))
    return Entry(cache, graph.resolve(), group, key, size_bytes)


@contextmanager
def keeping(entry: Entry | None) -> Iterator[Keep]:
    """What gives a graph's arrays, from what is kept; if nothing is, what is made in the block is kept at its end.

    That nothing can be kept or read is no error: arrays are then made in memory, and the log says why.
    """
    if entry is None or not entry.is_own():
        yield make_anew
        return
    if (kept := _read(entry)) is not None:
        yield lambda name, make: kept[name] if name in kept else make()
        return
    with entry.scratch() as scratch:
        if scratch is None:
            yield make_anew
            return
        writer = _Writer(entry, scratch)
        try:
            yield writer.arrays
            writer.finish()
        finally:
            writer.close()


class _Writer:
    """Writes an entry's file, and gives its parts as they will be mapped."""

    def __init__(self, entry: Entry, scratch: Path) -> None:
        self._entry, self._scratch = entry, scratch
        self._hash, self._end, self._index = hashlib.sha256(), 0, dict[str, list[Any]]()
        self._file: io.BufferedRandom | None = None
        try:
            (scratch / WEIGHTS).touch(mode=0o600)
            self._file = (scratch / WEIGHTS).open("r+b")
        except OSError as error:
            self._give_up(error)

    def arrays(self, name: str, make: Callable[[], Arrays]) -> Arrays:
        made = make()
        if self._file is None:
            return made
        try:
            parts = [self._put(self._file, array) for array in made]
        except OSError as error:
            self._give_up(error)
            return made
        self._index[name] = [(offset, array.dtype.str, array.shape) for offset, array in parts]
        return [array for _, array in parts]

    def finish(self) -> None:
        """Write what is left, and keep the entry."""
        if self._file is None:
            return
        try:
            index = json.dumps(self._index).encode()
            self._write(self._file, index + _LENGTH.pack(len(index)))
            self._file.write(self._hash.digest())
            self._file.flush()
            self._entry.keep(self._scratch)
        except OSError as error:
            self._give_up(error)

    def close(self) -> None:
        """Close the file. What is mapped stays until nobody uses it."""
        if self._file is not None:
            with suppress(OSError):  # what is left to write is of no use
                self._file.close()
        self._file = None

    def _put(self, file: io.BufferedRandom, array: np.ndarray) -> tuple[int, np.ndarray]:
        self._write(file, bytes(-self._end % mmap.ALLOCATIONGRANULARITY))
        offset = self._end
        self._write(file, np.ascontiguousarray(array).data.cast("B"))
        file.flush()
        mapped = mmap.mmap(file.fileno(), array.nbytes, access=mmap.ACCESS_COPY, offset=offset)
        return offset, np.frombuffer(mapped, array.dtype).reshape(array.shape)

    def _write(self, file: io.BufferedRandom, content: bytes | memoryview) -> None:
        file.write(content)
        self._hash.update(content)
        self._end += len(content)

    def _give_up(self, error: OSError) -> None:
        self._entry.not_kept(error)
        self.close()


def _read(entry: Entry) -> dict[str, Arrays] | None:
    """What is kept, mapped; None if it is not there, damaged, or may be another user's."""
    if not entry.is_kept():
        return None
    try:
        with open_own(entry.folder / WEIGHTS) as file:
            index = _checked_index(file)
            mapped = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY), np.uint8)
        return {name: [_part(mapped, *each) for each in parts] for name, parts in index.items()}
    except (OSError, ValueError) as error:
        entry.discard(error)
        return None


def _part(mapped: np.ndarray, offset: int, dtype: str, shape: Sequence[int]) -> np.ndarray:
    end = offset + int(np.prod(shape)) * np.dtype(dtype).itemsize
    return mapped[offset:end].view(dtype).reshape(shape)


def _checked_index(file: io.BufferedReader) -> dict[str, Any]:
    """The index of a file whose content has its hash.

    Raises:
        ValueError: it has not.
        OSError: it cannot be read.
    """
    left, found = os.fstat(file.fileno()).st_size - _HASH_BYTES, hashlib.sha256()
    while left > 0 and (piece := file.read(min(left, _READ_BYTES))):
        found.update(piece)
        left -= len(piece)
    if left or file.read() != found.digest():
        raise ValueError("the file is damaged")
    file.seek(-_HASH_BYTES - _LENGTH.size, os.SEEK_END)
    (length,) = _LENGTH.unpack(file.read(_LENGTH.size))
    file.seek(-_HASH_BYTES - _LENGTH.size - length, os.SEEK_END)
    index: dict[str, Any] = json.loads(file.read(length))
    return index
