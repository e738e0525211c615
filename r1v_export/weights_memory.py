"""Where a decoder's weights lie in this process's memory, once they are there: compact, and in huge pages.

A decoder reads all of its weights for every token. In pages of 4 KiB each page costs a walk through the page table,
a seventh of a step of a small model, and most systems give huge pages only to memory that asks for them. ONNX
Runtime and OpenVINO do not ask, and the first keeps the memory of weights that it has brought into another layout.
"""

from __future__ import annotations

import ctypes
import logging
import mmap
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from r1v_export.log_event import log_event

_LOG = logging.getLogger(__name__)
_SELF = Path("/proc/self")
HUGE_PAGE_BYTES = 2 << 20
MADV_COLLAPSE = 25
"""Of Linux 6.1 and later: bring a range into huge pages now, whatever the system's policy for other memory is."""
_NO_HUGE_PAGES = "nh"
"""Among a range's flags, see the kernel's Documentation/filesystems/proc.rst."""
_LEAST_PRESENT = 0.9
"""Of a huge page's small ones that are in use: the others become memory that was not taken before."""
_PRESENT_BIT, _ENTRY_BYTES = 63, 8
"""Of an entry of the page map, see the kernel's docs/admin-guide/mm/pagemap."""


LEAST_BYTES = 64 << 20
"""Of memory that a decoder's weights take: a step that reads less is short anyway."""


class Settling:
    """Settles the memory of a decoder's weights once, in a thread of its own.

    Args:
        weights_bytes: of memory, that they take.
    """

    def __init__(self, weights_bytes: int) -> None:
        self._waits = sys.platform == "linux" and weights_bytes >= LEAST_BYTES
        self.thread: threading.Thread | None = None

    def begin(self) -> None:
        """Start it where it was not started yet and is worth it. A decoder calls this at its first step for one token:
        the first token is not kept waiting, and who asks for no other pays nothing."""
        if self._waits:
            self._waits = False
            self.thread = threading.Thread(target=settle, name="weights-memory", daemon=True)
            self.thread.start()


def settle() -> None:
    """Give unused heap back to the system, and bring what is used into huge pages; where the system cannot, nothing.

    Takes a quarter of a second of one processor for 400 MB, and 2 s in a virtual machine whose memory is new to its
    host. Programs see no change.
    """
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        libc.malloc_trim(ctypes.c_size_t(0))
        ranges = list(_ranges_in_use())
    except (OSError, AttributeError, ValueError) as error:  # no glibc, or no /proc
        _LOG.debug("weights stay where they are: %s", error)
        return
    moved_bytes = 0
    for start, length in ranges:
        if libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(length), MADV_COLLAPSE) == 0:
            moved_bytes += length
    in_use_bytes = sum(length for _, length in ranges)
    message = "memory in huge pages: %(moved_bytes)s of %(in_use_bytes)s bytes"
    log_event(_LOG, logging.DEBUG, message, moved_bytes=moved_bytes, in_use_bytes=in_use_bytes)


def resident_bytes() -> int:
    """Memory of this process that is there, files of it included; 0 where the system does not say."""
    try:
        return int((_SELF / "statm").read_text(encoding="ascii").split()[1]) * mmap.PAGESIZE
    except OSError:
        return 0


def _ranges_in_use() -> Iterator[tuple[int, int]]:
    """Address and length of private memory, without a file, of which huge pages would be nearly full."""
    small = mmap.PAGESIZE
    pages = HUGE_PAGE_BYTES // small
    with (_SELF / "pagemap").open("rb", buffering=0) as page_map:
        for start, end in _anonymous():
            first, last = -(-start // HUGE_PAGE_BYTES), end // HUGE_PAGE_BYTES
            if last <= first:
                continue
            page_map.seek(first * pages * _ENTRY_BYTES)
            entries = np.frombuffer(page_map.read((last - first) * pages * _ENTRY_BYTES), np.uint64)
            present = (entries >> np.uint64(_PRESENT_BIT)).reshape(last - first, pages).mean(axis=1)
            full = np.flatnonzero(present >= _LEAST_PRESENT)
            for run in np.split(full, np.flatnonzero(np.diff(full) > 1) + 1):
                if len(run):
                    yield (first + int(run[0])) * HUGE_PAGE_BYTES, len(run) * HUGE_PAGE_BYTES


def _anonymous() -> list[tuple[int, int]]:
    """Begin and end of the heap and of writable private memory without a name, which may have huge pages.

    A cache may not, and is a thousand times the addresses that have memory: what the page map says of it is not read.
    """
    found: list[tuple[int, int]] = []
    candidate: tuple[int, int] | None = None
    for line in (_SELF / "smaps").read_text(encoding="utf-8", errors="replace").splitlines():
        first, *others = line.split(maxsplit=5)
        if first == "VmFlags:":
            if candidate and _NO_HUGE_PAGES not in line.split():
                found.append(candidate)
        elif not first.endswith(":"):
            access, _, _, inode, *name = others
            wanted = access.startswith("rw") and access.endswith("p") and inode == "0" and name in ([], ["[heap]"])
            start, end = (int(each, 16) for each in first.split("-"))
            candidate = (start, end) if wanted else None
    return found
