"""How much memory this process can still take, the machine's and what its cgroups allow, and how it gives some back."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from r1v_export.cpus import ROOT, cgroup_folders

_FILES = (
    ("memory.max", "memory.current", ("inactive_file", "active_file")),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", ("total_inactive_file", "total_active_file")),
)
"""Limit, use, and pages of files, which the kernel gives back, lines of memory.stat: of cgroup v2 and of v1."""


_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1
"""Options of glibc's `mallopt`: from what size on a block is the system's own, and how much stays free on the heap."""
_KEPT_BYTES = 256 << 20
"""Above the matrices of a layer of Qwen2-32B in 8 bits."""
_MOST_BYTES = 32 << 20
"""What glibc raises the first of them to by itself; the other one is twice that then."""

Opened = TypeVar("Opened")


def available_bytes(root: Path = ROOT) -> int:
    """Bytes that can be allocated before anything is swapped or killed.

    Args:
        root: of the file system that holds /proc and the cgroups.
    """
    import psutil

    return min((psutil.virtual_memory().available, *_left_in_cgroups(root)))


def most_bytes(root: Path = ROOT) -> int:
    """Bytes that this process could have if it were alone: the machine's memory, or what its cgroups allow.

    Args:
        root: of the file system that holds /proc and the cgroups.
    """
    import psutil

    files = [limit for limit, _, _ in _FILES]
    limits = (_number(folder / file) for folder in cgroup_folders(root, "memory") for file in files)
    return min((psutil.virtual_memory().total, *(limit for limit in limits if limit is not None)))


def release_free_memory() -> None:
    """Give the system back what has been freed; where the C library is not glibc, nothing.

    glibc keeps freed blocks of up to 32 MiB on its heap, which shrinks at its end only: a small array that lives on
    there holds all free memory below it, and blocks of a size that no hole fits make the heap grow.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(ctypes.c_size_t(0))


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Have large blocks made of what others of the process left behind, for work that takes and frees many.

    glibc gives each block of more than 32 MiB back to the system, which clears the next one page by page: that takes an
    eighth of the time of rounding and packing a model. Where the C library is not glibc nothing changes.
    """
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is None:
        yield
        return
    for option in (_MMAP_THRESHOLD, _TRIM_THRESHOLD):
        set_option(option, _KEPT_BYTES)
    try:
        yield
    finally:
        set_option(_MMAP_THRESHOLD, _MOST_BYTES)
        set_option(_TRIM_THRESHOLD, 2 * _MOST_BYTES)
        release_free_memory()


def opened(open_block: Callable[[], Opened]) -> Opened:
    """A block of a model, opened and to be computed in as little memory as can be: what was freed before goes back to
    the system, and so does what opening left behind on the heap."""
    release_free_memory()
    block = open_block()
    release_free_memory()
    return block


def _left_in_cgroups(root: Path) -> Iterator[int]:
    """What is left in the cgroups of this process that have a limit."""
    for folder in cgroup_folders(root, "memory"):
        for limit_file, use_file, reclaimable in _FILES:
            limit, use = _number(folder / limit_file), _number(folder / use_file)
            if limit is not None and use is not None:
                yield max(0, limit - use + _lines(folder / "memory.stat", reclaimable))


def _number(path: Path) -> int | None:
    """The number in a file; None where there is none, as in `memory.max` without a limit."""
    try:
        text = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return None
    return int(text) if text.isdecimal() else None


def _lines(path: Path, keys: Sequence[str]) -> int:
    """The sum of the numbers behind some keys."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return 0
    return sum(int(line.split()[1]) for line in lines if line.split(" ")[0] in keys)
