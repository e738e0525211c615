"""Files read only if they are files, and written whole or not at all, whenever the process or the machine stops."""

from __future__ import annotations

import contextlib
import errno
import io
import mmap
import os
import shutil
import stat
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from r1v_export.count import Count
from r1v_export.errors import CapabilityError, R1VError, UsageError

TEXT_LIMIT_BYTES = 64 << 20
"""Largest file that is read into memory as text or JSON, whose values take up to thirty times as much; the largest
published tokenizer.json has 35 MB."""

GRAPH_LIMIT_BYTES = 4 << 30
"""The same for a graph: protobuf ends at 2 GiB; weights lie apart."""

FileIdentity = tuple[int, int, int, int]
"""Device, inode, size, and modification time in ns: a file that keeps them is taken for unchanged, as git does."""

_UNFINISHED = ".unfinished"

_MADV_POPULATE_READ = 22
"""Of Linux 5.14, for which the module mmap has no name yet."""
_READ_BYTES = 4 << 20

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}


def open_regular(path: str | Path, limit_bytes: int | None = None) -> io.BufferedReader:
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


def require_readable(mapped: mmap.mmap, file: io.BufferedReader, offset: int) -> None:
    """Read a mapped part of a file now: a page that cannot be read is then an error, and not the signal SIGBUS, which
    ends the process, when it is used.

    Args:
        offset: where the part begins in the file.

    Raises:
        OSError: a byte cannot be read, or the file ends before the part does; says at which byte.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError):  # the kernel is older, or a page cannot be read: below is said which
            mapped.madvise(_MADV_POPULATE_READ)
            return
    buffer, position, end = bytearray(_READ_BYTES), offset, offset + len(mapped)
    while position < end:
        try:
            count = os.preadv(file.fileno(), [memoryview(buffer)[: end - position]], position)
        except OSError as error:
            raise OSError(error.errno, f"{error.strerror}, at byte {position}") from error
        if not count:
            raise OSError(errno.EIO, f"it ends at byte {position}")
        position += count


def forget_part(descriptor: int, begin: int, end: int) -> None:
    """Let the system give up the memory of a part of a file, unless someone has it mapped."""
    if hasattr(os, "posix_fadvise"):
        with contextlib.suppress(OSError):  # a hint, which a file system need not take
            os.posix_fadvise(descriptor, begin, end - begin, os.POSIX_FADV_DONTNEED)


def file_identity(status: os.stat_result) -> FileIdentity:
    """What a file is recognized by."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def require_regular(path: str | Path) -> None:
    """For files that a library opens by their name.

    Raises:
        OSError: it is missing, or no regular file.
    """
    _require_regular(path, os.stat(path), None)  # noqa: PTH116


def _require_regular(path: str | Path, status: os.stat_result, limit_bytes: int | None) -> None:
    if not stat.S_ISREG(status.st_mode):
        kind = _KINDS.get(stat.S_IFMT(status.st_mode), "something else")
        number = errno.EISDIR if stat.S_ISDIR(status.st_mode) else errno.EINVAL
        raise OSError(number, f"{kind} and not a regular file", str(path))
    if limit_bytes is not None and status.st_size > limit_bytes:
        raise OSError(errno.EFBIG, f"{Count(status.st_size, 'byte')}, more than the limit of {limit_bytes}", str(path))


@contextmanager
def explain_full_disk(where: Path, size_bytes: int = 0) -> Iterator[None]:
    """Turn what writing to a full disk raises, here or in a library, into an error that names path and bytes.

    Args:
        where: what is written, for errors that do not name their file.
        size_bytes: what all files below `where` will take, roughly; 0 if that is not known.

    Raises:
        CapabilityError: the disk or the user's quota is full.
    """
    try:
        yield
    except R1VError:
        raise
    except Exception as error:
        number = error.errno if isinstance(error, OSError) else None
        if number not in (errno.ENOSPC, errno.EDQUOT) and os.strerror(errno.ENOSPC) not in str(error):
            raise
        path = Path(error.filename) if isinstance(error, OSError) and error.filename else where
        folder = next(parent for parent in (path.absolute(), *path.absolute().parents) if parent.is_dir())
        usage = shutil.disk_usage(folder)
        quota = "the quota is used up; " if number == errno.EDQUOT else ""
        missing = size_bytes - sum(file.stat().st_size for file in where.rglob("*") if file.is_file()) - usage.free
        raise CapabilityError(
            "The disk is full.",
            where=path,
            expected=f"about {Count(missing, 'byte')} more" if missing > 0 else None,
            found=f"{quota}{usage.free} of {Count(usage.total, 'byte')} are free in {folder}",
            fix="make room and run the same command again, which goes on after what is finished; or choose a folder on "
            "another disk",
        ) from error


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` make a file under a temporary name next to `path`, sync it, and rename it to `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.unfinished")
    write(unfinished)
    sync_file(unfinished)
    unfinished.replace(path)
    sync_folder(path.parent)


@contextmanager
def fill_folder(folder: Path, last: str) -> Iterator[Path]:
    """Yield a folder to write into, within `folder`, whose files move up at the end, and durably; of an error or an
    interruption nothing remains. A folder that a killed process left unfinished is filled anew.

    Args:
        folder: made if it is not there; must be empty.
        last: file that moves last, without which the others are taken for nothing.

    Raises:
        UsageError: `folder` holds something, or cannot be written to.
    """
    require_writable(folder, "name another one")
    is_new, unfinished = not folder.exists(), folder / _UNFINISHED
    folder.mkdir(parents=True, exist_ok=True)
    if any(path != unfinished for path in folder.iterdir()):
        raise UsageError("The folder is not empty.", where=folder, fix="name a new one")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    try:
        yield unfinished
        for path in sorted(unfinished.iterdir(), key=lambda path: path.name == last):
            sync_file(path)
            path.replace(folder / path.name)
        sync_folder(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
        if is_new:
            with contextlib.suppress(OSError):  # it is filled
                folder.rmdir()


def hard_link(source: str | Path, target: str | Path) -> None:
    """Give a file another name; a link to it is followed.

    Raises:
        OSError: the file system has no hard links, the other name is on another one, or the user may not link it.
    """
    os.link(os.path.realpath(source), target)


def link_or_copy(source: str | Path, target: str | Path) -> None:
    """Give a large file that nobody writes to another name, or copy it where the file system has no hard links or the
    other name is on another one. A link is followed."""
    try:
        hard_link(source, target)
    except OSError:
        shutil.copy2(source, target)


def clone_or_copy(source: Path, target: Path) -> None:
    """Copy a file, by the kernel where it does that: file systems with clones (btrfs, XFS) then store the bytes once.

    Raises:
        OSError: it cannot be read to its end, or not be written.
    """
    with open_regular(source) as file, target.open("wb") as copy:
        size_bytes = os.fstat(file.fileno()).st_size
        position = 0
        with contextlib.suppress(OSError):  # another file system, or a kernel or system without it: copied below
            while position < size_bytes:
                count = os.copy_file_range(file.fileno(), copy.fileno(), size_bytes - position, position, position)
                if not count:
                    break
                position += count
        file.seek(position)
        copy.seek(position)
        shutil.copyfileobj(file, copy, _READ_BYTES)


def sync_file(path: Path) -> None:
    """Make a file's content durable."""
    with path.open("rb") as file:  # a linked one may be another's to write
        os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Make the renames in a folder durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def require_writable(folder: Path, fix: str) -> None:
    """Find out whether files can be written to a folder, before any work is done for them. Nothing is left behind.

    Args:
        fix: what to do if not.

    Raises:
        UsageError: it is a file, is below one, or this user or file system refuses to write.
    """
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise unwritable(folder, error, fix) from error
    finally:
        for made in missing:
            with contextlib.suppress(OSError):  # not made, or used by another process by now
                made.rmdir()


def require_no_file(folder: Path, fix: str) -> None:
    """Check, without writing, that no file stands where a folder is to be.

    Args:
        fix: what to do if one does.

    Raises:
        UsageError: the path, or one above it, is a file.
    """
    nearest = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not nearest.is_dir():
        raise unwritable(folder, NotADirectoryError(errno.ENOTDIR, f"{nearest} is a file"), fix)


def unwritable(folder: Path, error: OSError, fix: str) -> R1VError:
    """The error for a folder that cannot be written to."""
    found = "a file" if isinstance(error, FileExistsError) else error.strerror or str(error)
    return UsageError("The output folder cannot be written to.", where=folder, found=found, fix=fix)


def linked_bytes(folder: Path, sizes_bytes: Mapping[str, int]) -> int:
    """Bytes of files that take no disk of their own: hard links to each other, or to files elsewhere.

    Args:
        folder: where the files lie.
        sizes_bytes: of the files, by their path below it.
    """
    inodes = {path: (folder / path).stat() for path in sizes_bytes}
    names = Counter((inode.st_dev, inode.st_ino) for inode in inodes.values())
    linked, seen = 0, set[tuple[int, int]]()
    for path, inode in inodes.items():
        file = (inode.st_dev, inode.st_ino)
        if file in seen or inode.st_nlink > names[file]:
            linked += sizes_bytes[path]
        seen.add(file)
    return linked
