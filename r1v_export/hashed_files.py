"""Files that are hashed while they are written, so that nobody has to read them again for their hash.

    with record_hashes() as written:
        with open_hashed(path) as file:
            file.write(...)
    written.sha256(path)

What was written is found by the file itself and not by its name: it may have been moved in between.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

_Identity = tuple[int, int, int, int]
"""Device, inode, size and modification time of a file."""


@dataclass(frozen=True)
class WrittenHashes:
    """SHA-256 of files that were written by `open_hashed`."""

    _found: dict[_Identity, str] = field(default_factory=dict)

    def sha256(self, path: Path) -> str | None:
        """The hash of a file; None if it was not written so, or has been changed since."""
        return self._found.get(_identity(path.stat()))

    def add(self, status: os.stat_result, sha256: str) -> None:
        """Remember the hash of a file."""
        self._found[_identity(status)] = sha256


_RECORD: ContextVar[WrittenHashes | None] = ContextVar("hashes of written files", default=None)


@contextmanager
def record_hashes() -> Iterator[WrittenHashes]:
    """Collect the hashes of all files that this thread writes by `open_hashed`."""
    written = WrittenHashes()
    token = _RECORD.set(written)
    try:
        yield written
    finally:
        _RECORD.reset(token)


class HashedFile:
    """A new file, written from its beginning to its end."""

    def __init__(self, path: Path) -> None:
        self._file, self._digest = path.open("wb"), hashlib.sha256()

    def write(self, data: bytes | memoryview) -> int:
        """Append bytes, and return how many."""
        count = self._file.write(data)
        self._digest.update(data)
        return count

    def tell(self) -> int:
        """Bytes written so far."""
        return self._file.tell()

    def __enter__(self) -> HashedFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._file:
            if error is not None:
                return
            self._file.flush()
            record = _RECORD.get()
            if record is not None:
                record.add(os.fstat(self._file.fileno()), self._digest.hexdigest())


def open_hashed(path: Path) -> HashedFile:
    """Open a new file that is hashed while it is written; outside `record_hashes` its hash is not kept."""
    return HashedFile(path)


def _identity(status: os.stat_result) -> _Identity:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
