"""Files read only if they are files, and written whole or not at all, whenever the process or the machine stops."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

TEXT_LIMIT_BYTES = 256 << 20
"""Largest file that is read into memory as text or JSON; the largest published tokenizer.json has 35 MB."""

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}


def open_regular(path: str | Path, limit_bytes: int | None = None) -> BinaryIO:
    """Open a regular file, or a link to one, for reading; never wait for a pipe or read a device without end.

    Raises:
        OSError: it cannot be opened, is a folder, pipe, device or socket, or is larger than `limit_bytes`.
        ValueError: a null byte in the name.
    """
    _require_regular(path, os.stat(path), limit_bytes)  # noqa: PTH116  Path() would refuse no null byte here
    # Between stat and open the file may become a pipe: O_NONBLOCK opens that at once, to be refused below.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
    try:
        _require_regular(path, os.fstat(descriptor), limit_bytes)
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_regular_bytes(path: str | Path, limit_bytes: int = TEXT_LIMIT_BYTES) -> bytes:
    """The content of a regular file.

    Raises:
        OSError: as `open_regular`.
    """
    with open_regular(path, limit_bytes) as file:
        return file.read(limit_bytes)


def read_regular_text(path: str | Path, limit_bytes: int = TEXT_LIMIT_BYTES) -> str:
    """The content of a regular file in UTF-8, with line ends as `\\n`.

    Raises:
        OSError: as `open_regular`.
        UnicodeDecodeError: it is not UTF-8.
    """
    text = read_regular_bytes(path, limit_bytes).decode("utf-8")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _require_regular(path: str | Path, status: os.stat_result, limit_bytes: int | None) -> None:
    if not stat.S_ISREG(status.st_mode):
        kind = _KINDS.get(stat.S_IFMT(status.st_mode), "something else")
        number = errno.EISDIR if stat.S_ISDIR(status.st_mode) else errno.EINVAL
        raise OSError(number, f"{kind} and not a regular file", str(path))
    if limit_bytes is not None and status.st_size > limit_bytes:
        raise OSError(errno.EFBIG, f"{status.st_size} bytes, more than the limit of {limit_bytes}", str(path))


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` make a file under a temporary name beside `path`, sync it, and rename it to `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.unfinished")
    write(unfinished)
    sync_file(unfinished)
    unfinished.replace(path)
    sync_folder(path.parent)


def sync_file(path: Path) -> None:
    """Make a file's content durable."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Make the renames in a folder durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
