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
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

FileIdentity = tuple[int, int, int, int]
"""Device, inode, size, and modification time in ns: a file that keeps them is taken for unchanged, as git does."""


def file_identity(status: os.stat_result) -> FileIdentity:
    """What a file is recognized by."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


@dataclass(frozen=True)
class WrittenHashes:
    """SHA-256 of files that were written by `open_hashed`."""

    _found: dict[FileIdentity, str] = field(default_factory=dict)

    def sha256(self, path: Path) -> str | None:
        """The hash of a file; None if it was not written so, or has been changed since."""
        return self._found.get(file_identity(path.stat()))

    def add(self, status: os.stat_result, sha256: str) -> None:
        """Remember the hash of a file."""
        self._found[file_identity(status)] = sha256


QUEUE_BYTES = 64 << 20
"""How much may wait to be written; of a larger piece, which waits alone, all of it."""
_PIECE_BYTES = 1 << 20
"""Written and hashed at a time: it is still in a core's cache when it is hashed."""
_SYNC_BYTES = 256 << 20
"""After so much the disk is waited for, while others compute, so that little is left to wait for at the end."""

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
    """A new file, written from its beginning to its end; a thread writes and hashes while its user makes more.

    Errors of the thread are raised by the next `write`, or at the end.
    """

    def __init__(self, path: Path) -> None:
        self._file, self._digest, self._size_bytes = path.open("wb"), hashlib.sha256(), 0
        self._waiting, self._waiting_bytes = deque[memoryview](), 0
        self._changed = threading.Condition()
        self._error: BaseException | None = None
        self._ended = False
        self._thread: threading.Thread | None = None

    def write(self, data: bytes | memoryview) -> int:
        """Append bytes, which must not change any more, and return how many.

        Waits while `QUEUE_BYTES` are waiting to be written.

        Raises:
            OSError: the disk does not take what was written before.
        """
        view = memoryview(data)
        if not view.nbytes:
            return 0
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="writer", daemon=True)
            self._thread.start()
        with self._changed:
            self._changed.wait_for(
                lambda: self._error or not self._waiting or self._waiting_bytes + view.nbytes <= QUEUE_BYTES
            )
            if self._error:
                raise self._error
            self._waiting.append(view.cast("B"))
            self._waiting_bytes += view.nbytes
            self._size_bytes += view.nbytes
            self._changed.notify_all()
        return view.nbytes

    def tell(self) -> int:
        """Bytes given to `write` so far."""
        return self._size_bytes

    def __enter__(self) -> HashedFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._file:
            with self._changed:
                self._ended = True
                if error is not None:
                    self._waiting.clear()
                self._changed.notify_all()
            if self._thread:
                self._thread.join()
            if error is not None:
                return
            if self._error:
                raise self._error
            self._file.flush()
            record = _RECORD.get()
            if record is not None:
                record.add(os.fstat(self._file.fileno()), self._digest.hexdigest())

    def _run(self) -> None:
        unsynced = 0
        try:
            while (data := self._next()) is not None:
                for start in range(0, data.nbytes, _PIECE_BYTES):
                    piece = data[start : start + _PIECE_BYTES]
                    self._file.write(piece)
                    self._digest.update(piece)
                    unsynced += piece.nbytes
                    if unsynced >= _SYNC_BYTES:
                        os.fdatasync(self._file.fileno())
                        unsynced = 0
                with self._changed:
                    self._waiting_bytes -= data.nbytes
        except BaseException as error:  # raised in the thread that writes
            with self._changed:
                self._error = error
                self._waiting.clear()
                self._changed.notify_all()

    def _next(self) -> memoryview | None:
        """What is to be written next, once there is anything; None at the end."""
        with self._changed:
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._waiting or self._ended)
            return self._waiting.popleft() if self._waiting else None


def open_hashed(path: Path) -> HashedFile:
    """Open a new file that is hashed while it is written; outside `record_hashes` its hash is not kept."""
    return HashedFile(path)
