"""Files that are hashed while others read them, so that each comes from the disk once.

    with ReadHashes(paths) as hashes:
        ...                     # whoever maps a part of a file calls `note_read`
        hashes.finish()
    hashes.found[path]

SHA-256 takes a file from its beginning to its end, its readers take parts in an order of their own. As many bytes of a
file are hashed as readers have asked for, and as many more as memory allows: both find each other's pages in the page
cache, and where the parts lie in the order in which they are read, hashing reads ahead.
"""

from __future__ import annotations

import errno
import hashlib
import os
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from r1v_export.errors import CheckpointError
from r1v_export.files import FileIdentity, file_identity, forget_part, open_regular
from r1v_export.memory import available_bytes
from r1v_export.progress import ProgressCallback, ignore_progress

AHEAD_BYTES = (256 << 20, 1536 << 20)
"""How much more of a file is hashed than readers have asked for: a part of the available memory, between these. What
reads and rounds is at times on one core; the more may be hashed meanwhile, the less is left for when it is on all."""
_AHEAD_SHARE = 1 / 16
"""Of the available memory: the pages have to be there still when they are asked for, of two files at a time."""
LEFT_BYTES = 512 << 20
"""So much stays in memory behind the hash, and what may be hashed ahead, where memory does not hold the checkpoint;
what is farther back is given up. The kernel would rather give up what is hashed and still to be read: it keeps pages
that two have read longer than those that one has."""
BEHIND_BYTES = 2 << 30
"""How much less, of all files: then readers wait, because pages that they leave behind do not stay in memory."""

_THREADS = 2
"""That hash a file each: a build reads two at a time, and with one thread both readers wait for it."""
_PIECE_BYTES = 4 << 20
_REPORT_S = 0.1

_ACTIVE: list[ReadHashes] = []
"""Of the whole process: pools of threads read files, too."""


def note_read(path: Path, offset: int, size_bytes: int) -> None:
    """Say that a part of a file is about to be read, whole; may wait for a hash that lags behind."""
    for hashes in tuple(_ACTIVE):
        hashes.note_read(path, offset, size_bytes)


class FileHash:
    """SHA-256 of a file, computed a piece at a time from its beginning.

    Raises:
        OSError: it cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self.path, self._file, self._digest = path, open_regular(path), hashlib.sha256()
        self.identity = file_identity(os.fstat(self._file.fileno()))
        self.size_bytes, self.position = self.identity[2], 0

    def advance(self, buffer: bytearray) -> bool:
        """Hash as much as the buffer holds. Whether there was any more.

        Raises:
            OSError: the file cannot be read, or not to its end.
        """
        try:
            count = self._file.readinto(buffer)
        except OSError as error:
            found = f"{error.strerror}, at byte {self.position} of {self.size_bytes}"
            raise OSError(error.errno, found, str(self.path)) from error
        if not count and self.position < self.size_bytes:
            found = f"it ends at byte {self.position} of {self.size_bytes}"
            raise OSError(errno.EIO, found, str(self.path))
        self._digest.update(memoryview(buffer)[:count])
        self.position += count
        return bool(count)

    def forget(self, begin: int, end: int) -> None:
        """As `forget_part`."""
        forget_part(self._file.fileno(), begin, end)

    @property
    def sha256(self) -> str:
        """Of what was hashed so far, in hex."""
        return self._digest.hexdigest()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


@dataclass(frozen=True)
class FoundHash:
    """SHA-256 in hex of a file as it was with an identity."""

    sha256: str
    identity: FileIdentity


@dataclass
class _Reads:
    """What is known of one file's readers and its hash, in bytes."""

    size_bytes: int
    hashed: int = 0
    parts: list[tuple[int, int]] = field(default_factory=list)
    """What was asked for: where each part begins and ends, in order; none touches the next."""

    @property
    def asked(self) -> int:
        """What was asked for; what several asked for counts once."""
        return sum(end - begin for begin, end in self.parts)

    def covers(self, begin: int, end: int) -> bool:
        """Whether all between two offsets was asked for."""
        return any(first <= begin and end <= last for first, last in self.parts)

    def add(self, begin: int, end: int) -> None:
        """Someone asks for what is between two offsets."""
        touched = [part for part in self.parts if part[0] <= end and begin <= part[1]]
        apart = [part for part in self.parts if part not in touched]
        bounds = [(begin, end), *touched]
        self.parts = sorted([*apart, (min(first for first, _ in bounds), max(last for _, last in bounds))])


class ReadHashes:
    """Hashes of a checkpoint's files, computed in threads from `__enter__` on.

    Attributes:
        found: hashes of the files that were read to their end.

    Raises:
        OSError: a file is not there.
    """

    def __init__(self, paths: Iterable[Path]) -> None:
        self.found: dict[Path, FoundHash] = {}
        self._reads = {path: _Reads(path.stat().st_size) for path in paths}
        self._total = sum(reads.size_bytes for reads in self._reads.values())
        least, most = AHEAD_BYTES
        self._ahead_bytes, self._forgets = least, False
        if self._total > least:  # of fewer bytes all may be hashed ahead, and none need to be given up
            available = available_bytes()
            self._ahead_bytes = min(max(least, int(_AHEAD_SHARE * available)), most)
            self._forgets = self._total > available
        self._behind, self._behind_bytes = deque[tuple[FileHash, int, int]](), 0
        self._changed = threading.Condition()
        self._error: BaseException | None = None
        self._finishing = self._closed = False
        self._files, self._taken = dict[Path, FileHash](), set[Path]()
        self._threads = [threading.Thread(target=self._run, name="source hashes", daemon=True) for _ in range(_THREADS)]

    def __enter__(self) -> ReadHashes:
        _ACTIVE.append(self)
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        _ACTIVE.remove(self)
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()
        for file in self._files.values():
            file.close()

    def note_read(self, path: Path, offset: int, size_bytes: int) -> None:
        """As the function; nothing for other files, and for parts that were asked for before.

        Raises:
            CheckpointError: as `finish`.
        """
        with self._changed:
            reads = self._reads.get(path)
            if reads is None or reads.covers(offset, offset + size_bytes):
                return
            self._changed.wait_for(lambda: self._lag() <= BEHIND_BYTES or self._error or self._closed)
            if self._error:
                raise self._error
            reads.add(offset, offset + size_bytes)
            self._changed.notify_all()

    def finish(self, on_progress: ProgressCallback = ignore_progress) -> None:
        """Wait until all files are hashed, whoever else reads them.

        Raises:
            CheckpointError: one cannot be read, or not to its end; names it and the byte.
        """
        with self._changed:
            self._finishing = True
            self._changed.notify_all()
            while not self._changed.wait_for(lambda: self._error or len(self.found) == len(self._reads), _REPORT_S):
                on_progress(sum(reads.hashed for reads in self._reads.values()), self._total)
            if self._error:
                raise self._error

    def _lag(self) -> int:
        return sum(max(0, reads.asked - reads.hashed) for reads in self._reads.values())

    def _run(self) -> None:
        buffer = bytearray(_PIECE_BYTES)
        try:
            while (path := self._take()) is not None:
                file = self._files.get(path) or self._files.setdefault(path, FileHash(path))
                begin, more = file.position, file.advance(buffer)
                with self._changed:
                    self._reads[path].hashed = file.position
                    self._taken.remove(path)
                    if not more:
                        self.found[path] = FoundHash(file.sha256, file.identity)
                    forgotten = list(self._left_behind(file, begin))
                    self._changed.notify_all()
                for file, begin, end in forgotten:
                    file.forget(begin, end)
        except BaseException as error:  # raised where the hashes are asked for
            with self._changed:
                self._error = self._error or (unreadable(error) if isinstance(error, OSError) else error)
                self._changed.notify_all()

    def _left_behind(self, file: FileHash, begin: int) -> Iterator[tuple[FileHash, int, int]]:
        """What was read long ago, in the order in which it was hashed, so that its memory can be given up."""
        if not self._forgets:
            return
        self._behind.append((file, begin, file.position))
        self._behind_bytes += file.position - begin
        while self._behind_bytes > 2 * self._ahead_bytes + LEFT_BYTES:  # two files are read at a time
            file, begin, end = self._behind.popleft()
            self._behind_bytes -= end - begin
            if self._reads[file.path].covers(begin, end):
                yield file, begin, end

    def _take(self) -> Path | None:
        """A file that nobody else hashes a piece of, once there is one; None at the end."""
        with self._changed:
            while not self._closed and not self._error and len(self.found) < len(self._reads):
                for path, reads in self._reads.items():
                    is_due = self._finishing or (reads.asked and reads.hashed < reads.asked + self._ahead_bytes)
                    if is_due and path not in self.found and path not in self._taken:
                        self._taken.add(path)
                        return path
                self._changed.wait()
            return None


def unreadable(error: OSError) -> CheckpointError:
    """The error for a file of a checkpoint that cannot be read to its end."""
    return CheckpointError(
        "A file of the checkpoint cannot be read.",
        where=error.filename,
        found=error.strerror or error,
        fix="check its disk, or the connection to it, and run the same command again; it resumes",
    )
