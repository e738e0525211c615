"""Rounded weights of a graph, kept in a file of the user's cache folder.

OpenVINO packs matrices of its own from the weights that it is given, and these have to stay as long as the graph.
Rounded in memory they would be there twice for good; mapped from a file they are dropped once they are packed. The next
process that opens the graph has nothing to round.

A file is in this order: the matrices, each at a place that can be mapped; the index, in JSON; its length, 8 bytes; and
the SHA-256 of all before it, 32 bytes, without which nothing of it is used. The name holds a hash of all that decides
the content: rounding, and where the weights lie in files whose path, size, inode and time of change are known.
OpenVINO, its version and the processor have no part in it.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import logging
import mmap
import os
import stat
import struct
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from r1v_export.log_event import log_event
from r1v_export.progress import size
from r1v_export.targets.openvino.engine_file import GraphWeights
from r1v_export.targets.user_cache import (
    REPORTED_FROM_BYTES,
    VARIABLE,
    cache_folder,
    digest,
    file_states,
    fits,
    is_off,
)

_LOG = logging.getLogger(__name__)

LEAST_BYTES = 64 << 20
"""Of rounded weights: fewer are rounded in a fifth of a second and weigh little."""
_FORMAT = 1
"""To be raised where weights are rounded in another way."""
_SUFFIX = ".weights"
_LENGTH, _HASH_BYTES = struct.Struct("<Q"), 32
_READ_BYTES, _DAY_S = 1 << 20, 86_400
_WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH

Arrays: TypeAlias = Sequence[np.ndarray]
Keep: TypeAlias = Callable[[str, Callable[[], Arrays]], Arrays]
"""Gives the arrays of a name: those that are kept, or what the function makes."""


def make_anew(_: str, make: Callable[[], Arrays]) -> Arrays:
    """A `Keep` that keeps nothing."""
    return make()


@dataclass(frozen=True)
class Place:
    """Where a graph's rounded weights are kept.

    Attributes:
        graph: its file.
        folder: of the user's cache.
        prefix: of the names of all that is kept of this graph in this rounding.
        name: of the file.
        size_bytes: what the matrices take.
    """

    graph: Path
    folder: Path
    prefix: str
    name: str
    size_bytes: int

    @property
    def path(self) -> Path:
        """The file."""
        return self.folder / self.name

    def tell(self, message: str, level: int = logging.INFO, **fields: object) -> None:
        """Log what happened to the file."""
        log_event(_LOG, level, "%(graph)s: " + message, graph=str(self.graph), **fields)


def place_of(graph: Path, bundle: Path, weights: GraphWeights, products: str, bytes_each: int) -> Place | None:
    """Where a graph's rounded weights are kept; None if they are few, or nothing is to be kept.

    Args:
        graph: its file.
        bundle: what the weights' paths are relative to.
        products: what they are rounded to.
        bytes_each: of a rounded element.
    """
    matrices = [each for each in weights.values() if each.type == "f32" and len(each.shape) == 2]
    size_bytes = sum(each.size_bytes for each in matrices) // 4 * bytes_each
    folder = cache_folder("openvino")
    if size_bytes < LEAST_BYTES or folder is None or is_off():
        return None
    try:
        files = file_states(sorted({(bundle / each.file).resolve() for each in matrices}))
    except OSError:  # said where the file is read
        return None
    parts = sorted((name, each.model_dump_json()) for name, each in weights.items())
    prefix = digest(f"{graph.resolve()} {products}")
    key = digest(json.dumps([_FORMAT, sys.byteorder, products, parts, files]))
    return Place(graph.resolve(), folder, prefix, f"{prefix}-{key}{_SUFFIX}", size_bytes)


@contextmanager
def keeping(place: Place | None) -> Iterator[Keep]:
    """What gives a graph's arrays, from what is kept; if nothing is, what is made in the block is kept at its end.

    That nothing can be kept or read is no error: arrays are then made in memory, and the log says why.
    """
    if place is None:
        yield make_anew
        return
    if (kept := _read(place)) is not None:
        yield lambda name, make: kept[name] if name in kept else make()
        return
    writer = _Writer(place)
    try:
        yield writer.arrays
        writer.finish()
    finally:
        writer.close()


class _Writer:
    """Writes a file under another name, and gives its parts as they will be mapped."""

    def __init__(self, place: Place) -> None:
        self._place, self._hash, self._end, self._index = place, hashlib.sha256(), 0, dict[str, list[Any]]()
        self._file: io.BufferedRandom | None = None
        self._scratch: Path | None = None
        try:
            place.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            _require_own(place.folder, place.folder.stat())
            if not fits(place.size_bytes, place.folder):
                raise OSError(errno.ENOSPC, "a quarter of the disk's free space would not hold them", str(place.folder))
            descriptor, name = tempfile.mkstemp(prefix=f".{place.name}.", dir=place.folder)
            self._scratch, self._file = Path(name), os.fdopen(descriptor, "w+b")
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
        """Give the file its name."""
        if self._file is None or self._scratch is None:
            return
        try:
            index = json.dumps({"graph": str(self._place.graph), "arrays": self._index}).encode()
            self._write(self._file, index + _LENGTH.pack(len(index)))
            self._file.write(self._hash.digest())
            self._file.flush()
            self._scratch.replace(self._place.path)
            _remove_stale(self._place)
        except OSError as error:
            self._give_up(error)
            return
        level = logging.WARNING if self._end >= REPORTED_FROM_BYTES else logging.INFO
        message = "rounded weights are kept for the next time, %(size)s in %(file)s; " + f"{VARIABLE}=off keeps nothing"
        self._place.tell(message, level, size=size(self._end), file=str(self._place.path))

    def close(self) -> None:
        """Remove what is unfinished. What is mapped stays until nobody uses it."""
        if self._file is not None:
            with suppress(OSError):  # what is left to write is of no use
                self._file.close()
        if self._scratch is not None:
            with suppress(OSError):  # it has its name
                self._scratch.unlink()
        self._file = self._scratch = None

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
        self._place.tell("rounded weights are not kept: %(error)s", error=str(error))
        self.close()


def _read(place: Place) -> dict[str, Arrays] | None:
    """What is kept, mapped; None if it is not there, damaged, or may be another user's."""
    try:
        _require_own(place.folder, place.folder.stat())
        with _open(place.path) as file:
            index = _checked_index(file)
            mapped = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY), np.uint8)
        return {name: [_part(mapped, *each) for each in parts] for name, parts in index["arrays"].items()}
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        place.tell("rounded weights that were kept are not used: %(error)s", error=str(error))
        return None


def _part(mapped: np.ndarray, offset: int, dtype: str, shape: Sequence[int]) -> np.ndarray:
    end = offset + int(np.prod(shape)) * np.dtype(dtype).itemsize
    return mapped[offset:end].view(dtype).reshape(shape)


def _open(path: Path) -> io.BufferedReader:
    """A file of this user alone, by its own name."""
    flags = os.O_RDONLY | sum(getattr(os, name, 0) for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "O_BINARY"))
    file = os.fdopen(os.open(path, flags), "rb")
    try:
        status = os.fstat(file.fileno())
        _require_own(path, status)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
    except OSError:
        file.close()
        raise
    return file


def _require_own(path: Path, status: os.stat_result) -> None:
    """
    Raises:
        PermissionError: another user owns the file or folder, or may write to it.
    """
    if hasattr(os, "geteuid") and (status.st_uid != os.geteuid() or status.st_mode & _WRITABLE_BY_OTHERS):
        raise PermissionError(errno.EPERM, "other users may write to it", str(path))


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
    return _index(file)


def _index(file: io.BufferedReader) -> dict[str, Any]:
    file.seek(-_HASH_BYTES - _LENGTH.size, os.SEEK_END)
    (length,) = _LENGTH.unpack(file.read(_LENGTH.size))
    file.seek(-_HASH_BYTES - _LENGTH.size - length, os.SEEK_END)
    index: dict[str, Any] = json.loads(file.read(length))
    return index


def _remove_stale(place: Place) -> None:
    """Remove what was kept of this graph as it was, or of graphs that are gone; what killed processes left, after a
    day."""
    for entry in place.folder.iterdir():
        if entry.name.startswith("."):
            stale = time.time() - entry.stat().st_mtime > _DAY_S
        else:
            stale = entry.name.startswith(place.prefix) or not _graph_is_there(entry)
        if stale and entry != place.path:
            entry.unlink(missing_ok=True)


def _graph_is_there(entry: Path) -> bool:
    try:
        with _open(entry) as file:
            return Path(_index(file)["graph"]).is_file()
    except (OSError, ValueError, KeyError, struct.error):
        return False
