"""Arrays between two blocks of a streamed comparison: in memory up to a limit, the rest in files."""

from __future__ import annotations

from collections.abc import Hashable
from pathlib import Path

import numpy as np


class ActivationStore:
    """Arrays by key; a new array takes the place of the key's old one.

    Args:
        folder: of the files; made when it is needed.
        limit_bytes: arrays that do not fit into this much memory go to files.
    """

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self.folder, self.limit_bytes = folder, limit_bytes
        self._held: dict[Hashable, np.ndarray] = {}
        self._files: dict[Hashable, Path] = {}
        self._held_bytes = self._written = 0

    def put(self, key: Hashable, array: np.ndarray) -> None:
        """Keep an array [...] under a key."""
        if (old := self._held.pop(key, None)) is not None:
            self._held_bytes -= old.nbytes
        if self._held_bytes + array.nbytes <= self.limit_bytes:
            self._held[key] = array
            self._held_bytes += array.nbytes
            if (path := self._files.pop(key, None)) is not None:
                path.unlink()
            return
        if key not in self._files:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._files[key] = self.folder / f"{self._written}.npy"
            self._written += 1
        np.save(self._files[key], array)

    def get(self, key: Hashable) -> np.ndarray:
        """The latest array [...] of a key.

        Raises:
            KeyError: there is none.
        """
        if (held := self._held.get(key)) is not None:
            return held
        array: np.ndarray = np.load(self._files[key])
        return array
