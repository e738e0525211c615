"""The user's cache folder, where processes keep for the next ones what they would work out again: can be deleted at any
time, and switched off."""

from __future__ import annotations

import errno
import hashlib
import io
import logging
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from r1v_export.files import read_regular_text
from r1v_export.log_event import log_event
from r1v_export.progress import size

_LOG = logging.getLogger(__name__)

VARIABLE = "R1V_EXPORT_GRAPH_CACHE"
"""Of the environment: `off` keeps nothing, and reads nothing that was kept."""
REPORTED_FROM_BYTES = 1 << 30
"""What takes so much of the user's disk is reported without being asked for."""
_SHARE_OF_DISK = 4
"""Of the disk's free space, what is written takes this part at most."""
_SOURCE, _DAY_S = "source", 86_400
_WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH


@dataclass(frozen=True)
class Entry:
    """What is kept of a file: a folder, written under another name, which gets its own once it is whole.

    That nothing can be kept is no error: the log says why, and the caller works without.

    Attributes:
        cache: the folder of all entries, of `cache_folder`.
        source: the file, such as a graph, without which its entries are stale.
        group: a digest; a new entry makes all others of its group stale.
        key: a digest of all that decides the content.
        size_bytes: what it takes of the disk, roughly.
    """

    cache: Path
    source: Path
    group: str
    key: str
    size_bytes: int

    @property
    def folder(self) -> Path:
        """Its own name."""
        return self.cache / f"{self.group}-{self.key}"

    def is_kept(self) -> bool:
        """Whether it is there; it was whole when it was written."""
        return os.path.lexists(self.folder)

    def is_own(self) -> bool:
        """Whether the folder of all entries, made if it is not there, is this user's alone."""
        try:
            self.cache.mkdir(mode=0o700, parents=True, exist_ok=True)
            _require_own(self.cache, self.cache.stat())
        except OSError as error:
            self.not_kept(error)
            return False
        return True

    @contextmanager
    def scratch(self) -> Iterator[Path | None]:
        """A new folder of this process alone to write the content into; removed at the end unless it was kept.

        Yields:
            None where nothing can be written, or too little of the disk is free.
        """
        scratch = self._new_folder()
        try:
            yield scratch
        finally:
            if scratch is not None:
                shutil.rmtree(scratch, ignore_errors=True)

    def keep(self, scratch: Path) -> None:
        """Give a scratch folder that is whole the entry's name, and remove what is stale. Where another process was
        faster, the entry is the same, and stays.

        Raises:
            OSError: the disk is full, for example.
        """
        size_bytes = sum(file.stat().st_size for file in scratch.iterdir())
        (scratch / _SOURCE).write_text(str(self.source), encoding="utf-8")
        try:
            scratch.rename(self.folder)  # atomic, and refused where a folder has files
        except OSError:
            if self.is_kept():
                return
            raise
        level = logging.WARNING if size_bytes >= REPORTED_FROM_BYTES else logging.INFO
        message = "kept for the next time, %(size)s in %(folder)s; " + f"{VARIABLE}=off keeps nothing"
        self._log(message, level, size=size(size_bytes), folder=str(self.folder))
        self._remove_stale()

    def not_kept(self, error: Exception) -> None:
        """Log why nothing is kept."""
        self._log("nothing is kept: %(error)s", error=str(error))

    def discard(self, error: Exception) -> None:
        """Remove what is there, so that it is made anew, and log why."""
        self._log("what was kept cannot be used: %(error)s", error=str(error))
        with suppress(OSError):  # it stays, and is refused again
            _remove(self.folder)

    def _new_folder(self) -> Path | None:
        try:
            self.cache.mkdir(mode=0o700, parents=True, exist_ok=True)
            if self.size_bytes * _SHARE_OF_DISK > shutil.disk_usage(self.cache).free:
                raise OSError(errno.ENOSPC, "it would take more than a quarter of the free space", str(self.cache))
            return Path(tempfile.mkdtemp(prefix=f".{self.folder.name}.", dir=self.cache))
        except OSError as error:
            self.not_kept(error)
            return None

    def _remove_stale(self) -> None:
        with suppress(OSError):  # the user deletes the folder now
            for path in list(self.cache.iterdir()):
                with suppress(OSError):  # another process has renamed or removed it by now
                    if self._is_stale(path):
                        _remove(path)

    def _is_stale(self, path: Path) -> bool:
        """Whether it is of this entry's group, of a file that is gone, or what a killed process left a day ago."""
        if path == self.folder:
            return False
        if path.name.startswith("."):
            return time.time() - path.lstat().st_mtime > _DAY_S
        return path.name.startswith(f"{self.group}-") or not _source_is_there(path)

    def _log(self, message: str, level: int = logging.INFO, **fields: object) -> None:
        log_event(_LOG, level, "%(source)s: " + message, source=str(self.source), **fields)


def is_off() -> bool:
    """Whether the user lets nothing be kept."""
    return os.environ.get(VARIABLE) == "off"


def cache_folder(kind: str) -> Path | None:
    """`$XDG_CACHE_HOME/r1v-export/<kind>`, or below `~/.cache`; None for a user without a home."""
    try:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    except RuntimeError:
        return None
    return Path(base).absolute() / "r1v-export" / kind


def open_own(path: Path) -> io.BufferedReader:
    """Open a file of this user alone, by its own name, to read it.

    Raises:
        OSError: it is another user's, or others may write to it; or it is a link, no regular file, or not there.
    """
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


def file_states(files: list[Path]) -> list[tuple[str, int, int, int]]:
    """Path, size, time of change in ns and inode of files, by which it is seen that one is not the same any more.

    Raises:
        OSError: one is missing.
    """
    return [(str(file), found.st_size, found.st_mtime_ns, found.st_ino) for file in files if (found := file.stat())]


def digest(text: str) -> str:
    """A name for what a text says, 24 hexadecimal digits."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:24]  # names of files may be no UTF-8


def _source_is_there(entry: Path) -> bool:
    try:
        return Path(read_regular_text(entry / _SOURCE)).is_file()
    except (OSError, ValueError):
        return False


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
