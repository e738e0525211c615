"""Measured kernel times, kept between builds on one machine: valid for one TensorRT version and one GPU."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import torch

from r1v_export.builders.tensorrt.library import Library


class TimingCache:
    """Gives a build the times measured by earlier ones, and keeps those that it measures.

    The file's name holds library, version and GPU, so that no other one's is ever offered; a file that the library
    refuses is measured anew.
    """

    def __init__(self, library: Library, config: Any) -> None:
        gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
        self.path = folder() / f"{file_name(library.target, library.version, gpu)}.cache"
        content = self.path.read_bytes() if self.path.is_file() else b""
        cache = config.create_timing_cache(content) or config.create_timing_cache(b"")
        config.set_timing_cache(cache, ignore_mismatch=False)

    def save(self, config: Any) -> None:
        """Keep what the build has measured; a cache that cannot be written is no error."""
        content = bytes(config.get_timing_cache().serialize())
        unfinished = self.path.with_suffix(f".{os.getpid()}")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            unfinished.write_bytes(content)
            unfinished.replace(self.path)
        except OSError:
            unfinished.unlink(missing_ok=True)


def folder() -> Path:
    """`$XDG_CACHE_HOME/r1v-export/tensorrt`, or below `~/.cache`."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "r1v-export" / "tensorrt"


def file_name(target: str, version: str, gpu: str) -> str:
    """One file per library, version and GPU, whatever characters those are written with."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", f"{target}-{version}-{gpu}")
