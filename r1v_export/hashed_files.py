"""Files that are hashed while they are written, so that nobody has to read them again for their hash.

    with record_hashes() as written:
        with open_hashed(path) as file:
            file.write(...)
    written.sha256(path)

What was written is found by the file itself and not by its name: it may have been moved in between. With a journal, a
file of which a part was written before is gone on with behind that part.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections import deque
from collections.abc import Collection, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from types import TracebackType
from typing import IO

from r1v_export.files import FileIdentity, file_identity, forget_part
from r1v_export.memory import available_bytes
from r1v_export.write_journal import WriteJournal

_KEPT_SHARE = 1 / 4
"""Of the available memory: so much of what was written may stay in it. More would push out what is still to be read."""


class WrittenHashes:
    """SHA-256 of files that were written by `open_hashed`.

    Args:
        journal: as `record_hashes`.
    """

    def __init__(self, journal: WriteJournal | None = None) -> None:
        self.journal = journal
        self._found: dict[FileIdentity, str] = {}
        self._left_bytes: int | None = None
        self._lock = threading.Lock()

    def sha256(self, path: Path) -> str | None:
        """The hash of a file; None if it was not written so, or has been changed since."""
        return self._found.get(file_identity(path.stat()))

    def add(self, status: os.stat_result, sha256: str) -> None:
        """Remember the hash of a file."""
        self._found[file_identity(status)] = sha256

    def may_keep(self, size_bytes: int) -> bool:
        """Whether the system may keep so many more bytes of what was written in memory, for whoever reads them next."""
        with self._lock:
            if self._left_bytes is None:
                self._left_bytes = int(_KEPT_SHARE * available_bytes())
            self._left_bytes -= size_bytes
            return self._left_bytes >= 0


QUEUE_BYTES = 192 << 20
"""How much may wait to be written, two of the largest packed matrices of a layer of Qwen2-32B for example; of a larger
piece, which waits alone, all of it."""
_PART = memoryview(b"")
"""Stands in the queue where a part ends."""
_PIECE_BYTES = 1 << 20
"""Written before the next sync may be due."""
_SYNC_BYTES = 256 << 20
"""After so much the disk is asked to take it, while more is written and hashed, so that little is left to wait for at
the end. Of what it has not taken then, so much may be behind."""
NOTED_BYTES = 256 << 20
"""After so much a part that ended is noted in the journal: no more, and no more than a part, is written again."""

_RECORD: ContextVar[WrittenHashes | None] = ContextVar("hashes of written files", default=None)


@contextmanager
def record_hashes(journal: WriteJournal | None = None) -> Iterator[WrittenHashes]:
    """Collect the hashes of all files that this thread writes by `open_hashed`.

    Args:
        journal: of the folder that they lie in: what it knows to be written is not written again.
    """
    written = WrittenHashes(journal=journal)
    token = _RECORD.set(written)
    try:
        yield written
    finally:
        _RECORD.reset(token)


class HashedFile:
    """A new file, written from its beginning to its end; a thread writes and another one hashes while its user makes
    more.

    Errors of the threads are raised by the next `write`, or at the end.

    Attributes:
        start: where to begin: what lies before was written by an earlier run, and is not to be written again.
    """

    def __init__(self, path: Path, ends: Collection[int] = ()) -> None:
        self._path, self._record = path, _RECORD.get()
        journal = self._record.journal if self._record and ends else None
        self._journal = journal if journal and journal.covers(path) else None
        found = self._journal.find(path, ends) if self._journal else None
        self._sha256 = found.sha256 if found else None
        self._digest = found.digest if found and found.digest else hashlib.sha256()
        self._file = path.open("r+b" if found else "wb")
        self.start = self._size_bytes = self._noted_bytes = found.size_bytes if found else 0
        self._file.seek(self.start)
        if self._sha256 is None:
            self._file.truncate()
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

    def end_part(self) -> None:
        """Say that a part ends here, behind which a later run may go on."""
        if self._thread is not None and self._journal is not None:
            with self._changed:
                self._waiting.append(_PART)
                self._changed.notify_all()

    def end(self) -> None:
        """Say that this was all; what is waiting is still written, and waited for at the end of the `with` block."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def __enter__(self) -> HashedFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._file:
            if error is not None and self._journal is None:
                with self._changed:
                    self._waiting.clear()
            self.end()
            if self._thread:
                self._thread.join()
            if error is not None:
                return
            if self._error:
                raise self._error
            self._file.flush()
            sha256 = self._sha256 or self._digest.hexdigest()
            if self._record is not None:
                self._record.add(os.fstat(self._file.fileno()), sha256)
            if self._journal is not None and self._sha256 is None:
                os.fsync(self._file.fileno())
                self._journal.note(self._path, self._size_bytes, sha256, finished=True)

    def _run(self) -> None:
        try:
            with _Syncing(self._file, self._record) as syncing, ThreadPoolExecutor(1, "hash") as hashing:
                self._write_all(syncing, hashing)
        except BaseException as error:  # raised in the thread that writes
            with self._changed:
                self._error = error
                self._waiting.clear()
                self._changed.notify_all()

    def _write_all(self, syncing: _Syncing, hashing: Executor) -> None:
        written_bytes = self.start
        while (data := self._next()) is not None:
            if data is _PART:
                self._note_part(written_bytes)
            written_bytes += data.nbytes
            hashed = hashing.submit(self._digest.update, data)
            for start in range(0, data.nbytes, _PIECE_BYTES):
                piece = data[start : start + _PIECE_BYTES]
                self._file.write(piece)
                syncing.add(piece.nbytes)
            hashed.result()
            with self._changed:
                self._waiting_bytes -= data.nbytes

    def _note_part(self, written_bytes: int) -> None:
        if self._journal is not None and written_bytes - self._noted_bytes >= NOTED_BYTES:
            self._file.flush()
            self._journal.note(self._path, written_bytes, self._digest.copy().hexdigest(), finished=False)
            self._noted_bytes = written_bytes

    def _next(self) -> memoryview | None:
        """What is to be written next, once there is anything; `_PART` where a part ends, None at the end."""
        with self._changed:
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._waiting or self._ended)
            return self._waiting.popleft() if self._waiting else None


class _Syncing:
    """A thread that lets the disk take what was written to a file, one part while the next one is written."""

    def __init__(self, file: IO[bytes], record: WrittenHashes | None) -> None:
        self._file, self._record, self._synced, self._unsynced = file, record, file.tell(), 0
        self._pool = ThreadPoolExecutor(1, "sync")
        self._last: Future[None] | None = None

    def add(self, size_bytes: int) -> None:
        """So much more was written.

        Raises:
            OSError: the disk does not take what was written before.
        """
        self._unsynced += size_bytes
        if self._unsynced >= _SYNC_BYTES:
            self._wait()
            self._last = self._pool.submit(self._sync, self._synced, self._unsynced)
            self._synced += self._unsynced
            self._unsynced = 0

    def _sync(self, begin: int, size_bytes: int) -> None:
        os.fdatasync(self._file.fileno())
        if self._record is not None and not self._record.may_keep(size_bytes):
            forget_part(self._file.fileno(), begin, begin + size_bytes)

    def _wait(self) -> None:
        if self._last is not None:
            self._last.result()

    def __enter__(self) -> _Syncing:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._pool:  # waits for its thread: the file is closed afterwards
            if error is None:
                self._wait()


def note_hash(path: Path, sha256: str) -> None:
    """Say what a file's hash is that this thread did not write, for `record_hashes`."""
    record = _RECORD.get()
    if record is not None:
        record.add(path.stat(), sha256)


def open_hashed(path: Path, ends: Collection[int] = ()) -> HashedFile:
    """Open a new file that is hashed while it is written; outside `record_hashes` its hash is not kept.

    Args:
        ends: where its parts end, in bytes from its beginning, the last at its end: an interrupted file is gone on with
            behind one of them. Without any it is written anew.
    """
    return HashedFile(path, ends)
