"""The user's cache folder, where targets keep between processes what they would work out again: can be deleted at any
time, and switched off."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

VARIABLE = "R1V_EXPORT_GRAPH_CACHE"
"""Of the environment: `off` keeps nothing, and reads nothing that was kept."""
REPORTED_FROM_BYTES = 1 << 30
"""What takes so much of the user's disk is reported without being asked for."""
_SHARE_OF_DISK = 4
"""Of the disk's free space, what is written takes this part at most."""


def is_off() -> bool:
    """Whether the user lets nothing be kept."""
    return os.environ.get(VARIABLE) == "off"


def cache_folder(target: str) -> Path | None:
    """`$XDG_CACHE_HOME/r1v-export/<target>`, or below `~/.cache`; None for a user without a home."""
    try:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    except RuntimeError:
        return None
    return Path(base).absolute() / "r1v-export" / target


def fits(size_bytes: int, folder: Path) -> bool:
    """Whether the disk of a folder has so much room that what is kept is not missed."""
    return size_bytes * _SHARE_OF_DISK <= shutil.disk_usage(folder).free


def file_states(files: list[Path]) -> list[tuple[str, int, int, int]]:
    """Path, size, time of change in ns and inode of files, by which it is seen that one is not the same any more.

    Raises:
        OSError: one is missing.
    """
    return [(str(file), found.st_size, found.st_mtime_ns, found.st_ino) for file in files if (found := file.stat())]


def digest(text: str) -> str:
    """A name for what a text says, 24 hexadecimal digits."""
    return hashlib.sha256(text.encode()).hexdigest()[:24]
