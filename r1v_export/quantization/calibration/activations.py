"""The activations between two blocks, one tensor per sample: in memory up to a limit, the rest in files.

FOLDER/0007/12.safetensors   what sample 12 brings to block 7
FOLDER/0007/complete         all of block 7's are in files: a calibration that was stopped can go on from here
"""

from __future__ import annotations

import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from r1v_export.files import sync_file, sync_folder

_COMPLETE = "complete"
_KEY = "activations"


class Activations:
    """The inputs of the current block, one tensor per sample, and those of the next block as they are computed.

    Args:
        folder: of the spilled files; files of an earlier, interrupted run are used by `resume_at`, else removed.
        limit_bytes: tensors that do not fit into this much memory go to files; 0 puts them all there, which makes a
            stopped calibration resume without computing anything twice.
    """

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self.folder, self.limit_bytes = folder, limit_bytes
        self.block = 0
        self._held: dict[tuple[int, int], Tensor] = {}
        self._held_bytes = 0

    def resume_at(self, latest: int) -> int:
        """Start at the last block up to `latest` whose activations are complete on disk; at block 0 without any."""
        complete = [int(path.parent.name) for path in self.folder.glob(f"*/{_COMPLETE}")]
        self.block = max((block for block in complete if block <= latest), default=0)
        for path in self.folder.glob("*"):
            if int(path.name) != self.block or self.block not in complete:
                shutil.rmtree(path)
        return self.block

    def take(self, sample: int) -> Tensor:
        """Remove and return a sample's activations, on the CPU."""
        held = self._held.pop((self.block, sample), None)
        if held is None:
            return load_file(self._path(self.block, sample))[_KEY]
        self._held_bytes -= held.nbytes
        return held

    def put(self, sample: int, tensor: Tensor) -> None:
        """Keep the activations [...] that a sample brings to the next block."""
        tensor = tensor.cpu().contiguous()
        if self._held_bytes + tensor.nbytes <= self.limit_bytes:
            self._held[self.block + 1, sample] = tensor
            self._held_bytes += tensor.nbytes
            return
        path = self._path(self.block + 1, sample)
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({_KEY: tensor}, path)
        sync_file(path)

    def advance(self) -> None:
        """Go on to the next block, for which every sample has been put."""
        finished, self.block = self.block, self.block + 1
        folder = self._path(self.block, 0).parent
        if not self._held and folder.is_dir():
            sync_folder(folder)
            (folder / _COMPLETE).touch()
            sync_folder(folder)
        shutil.rmtree(self._path(finished, 0).parent, ignore_errors=True)

    def clear(self) -> None:
        """Drop all activations, in memory and on disk."""
        self._held.clear()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, block: int, sample: int) -> Path:
        return self.folder / f"{block:04}" / f"{sample}.safetensors"
