"""What the libraries worked out for one version and one GPU, kept between processes on one machine.

Files are in the user's cache folder and can be deleted at any time. Their names hold library, version and GPU, so that
no other one's is ever offered; a file that the library refuses is made anew.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from r1v_export.files import read_regular_bytes
from r1v_export.targets.tensorrt.build.plan import PlanInfo
from r1v_export.targets.tensorrt.library import Library


class TimingCache:
    """Gives a build the kernels' times measured by earlier ones, and keeps those that it measures."""

    def __init__(self, library: Library, config: Any) -> None:
        self.path = folder() / f"{file_name(library.target, library.version, _gpu())}.cache"
        content = read_regular_bytes(self.path) if self.path.is_file() else b""
        cache = config.create_timing_cache(content) or config.create_timing_cache(b"")
        config.set_timing_cache(cache, ignore_mismatch=False)

    def save(self, config: Any) -> None:
        """Keep what the build has measured."""
        _keep(self.path, bytes(config.get_timing_cache().serialize()))


class RuntimeCache:
    """Gives an engine the kernels that were compiled for it in earlier processes, and keeps those compiled in this one.

    TensorRT-RTX compiles for the GPU that is there when an engine is first run.

    Attributes:
        config: an IRuntimeConfig, for the engine's execution contexts.
    """

    def __init__(self, library: Library, engine: Any, info: PlanInfo) -> None:
        name = file_name(library.target, library.version, _gpu(), info.sha256[:16])
        self.path = folder() / f"{name}.kernels"
        self.config = engine.create_runtime_config()
        self._cache = self.config.create_runtime_cache()
        if self.path.is_file():
            # False, and an empty cache, if the file is unsuitable.
            self._cache.deserialize(read_regular_bytes(self.path))
        self.config.set_runtime_cache(self._cache)

    def save(self) -> None:
        """Keep what has been compiled."""
        _keep(self.path, bytes(self._cache.serialize()))


def folder() -> Path:
    """`$XDG_CACHE_HOME/r1v-export/tensorrt`, or below `~/.cache`."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "r1v-export" / "tensorrt"


def file_name(*parts: str) -> str:
    """One name for what all parts say, whatever characters those are written with."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", "-".join(parts))


def _gpu() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "none"


def _keep(path: Path, content: bytes) -> None:
    """Write all or nothing; a cache that cannot be written is no error."""
    unfinished = path.with_suffix(f".{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished.write_bytes(content)
        unfinished.replace(path)
    except OSError:
        with suppress(OSError):
            unfinished.unlink()
