"""The activations between two blocks, one tensor per sample: in files, and as many as fit also in memory.

FOLDER/0007.data   what the samples bring to block 7, one tensor behind the other
FOLDER/0007.json   where each begins; written last: a calibration that was stopped can go on from block 7
"""

from __future__ import annotations

import math
from contextlib import closing
from pathlib import Path
from typing import IO

import torch
from torch import Tensor

from r1v_export.errors import BundleError
from r1v_export.files import read_regular_bytes, sync_file, write_atomically
from r1v_export.manifest import to_json
from r1v_export.strict import StrictModel, parse_json

_DATA, _INDEX = ".data", ".json"


class StoredActivations(StrictModel):
    """One sample's activations in the file of a block."""

    offset: int
    shape: tuple[int, ...]
    dtype: str
    """Name in torch, such as `float32`."""

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype itself."""
        dtype = getattr(torch, self.dtype)
        assert isinstance(dtype, torch.dtype)
        return dtype


class ActivationIndex(StrictModel):
    """Content of a block's index: where the activations of each sample are."""

    samples: dict[int, StoredActivations]


class Activations:
    """The inputs of the current block, one tensor per sample, and those of the next block as they are computed.

    Everything is written to files, so that a stopped calibration computes no block's outputs twice.

    Args:
        folder: of the files; those of an earlier, interrupted run are used by `resume_at`, else removed.
        limit_bytes: how much is also kept in memory, where it is not read again.
    """

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self.folder, self.limit_bytes = folder, limit_bytes
        self.block = 0
        self._held: dict[tuple[int, int], Tensor] = {}
        self._held_bytes = 0
        self._index = ActivationIndex(samples={})
        self._next: dict[int, StoredActivations] = {}
        self._file: IO[bytes] | None = None

    def resume_at(self, latest: int) -> int:
        """Start at the last block up to `latest` whose activations are complete; at block 0 without any.

        Raises:
            BundleError: the activations of that block are damaged.
        """
        complete = [int(path.stem) for path in self.folder.glob(f"*{_INDEX}")]
        self.block = max((block for block in complete if block <= latest), default=0)
        kept = {self._path(self.block, suffix) for suffix in (_DATA, _INDEX)} if self.block else set()
        for path in set(self.folder.glob("*")) - kept:
            path.unlink()
        if self.block:
            self._index = self._read_index()
        return self.block

    def take(self, sample: int) -> Tensor:
        """Return a sample's activations, on the CPU; no longer held in memory."""
        held = self._held.pop((self.block, sample), None)
        if held is not None:
            self._held_bytes -= held.nbytes
            return held
        stored = self._index.samples[sample]
        count = math.prod(stored.shape)
        if not count:
            return torch.empty(stored.shape, dtype=stored.torch_dtype)
        tensor = torch.empty(count, dtype=stored.torch_dtype)
        path = self._path(self.block, _DATA)
        with path.open("rb") as file:
            file.seek(stored.offset)
            if file.readinto(tensor.view(torch.uint8).numpy().data) != tensor.nbytes:
                raise _damaged(path)
        return tensor.view(stored.shape)

    def put(self, sample: int, tensor: Tensor) -> None:
        """Keep the activations [...] that a sample brings to the next block."""
        tensor = tensor.cpu().contiguous()
        if self._file is None:
            path = self._path(self.block + 1, _DATA)
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("wb")
        dtype = str(tensor.dtype).removeprefix("torch.")
        self._next[sample] = StoredActivations(offset=self._file.tell(), shape=tuple(tensor.shape), dtype=dtype)
        if tensor.numel():
            self._file.write(tensor.flatten().view(torch.uint8).numpy().data)
        if self._held_bytes + tensor.nbytes <= self.limit_bytes:
            self._held[self.block + 1, sample] = tensor
            self._held_bytes += tensor.nbytes

    def complete(self) -> None:
        """Every sample has been put: from here on a stopped run need not compute the next block's inputs again."""
        if self._file is None:
            return
        with closing(self._file) as file:
            self._file = None
        sync_file(Path(file.name))
        text = to_json(ActivationIndex(samples=self._next).model_dump(mode="json"))
        index = self._path(self.block + 1, _INDEX)
        write_atomically(index, lambda unfinished: unfinished.write_text(text, encoding="utf-8"))

    def advance(self) -> None:
        """Go on to the next block, for which every sample has been put."""
        self.complete()
        for suffix in (_INDEX, _DATA):
            self._path(self.block, suffix).unlink(missing_ok=True)
        self.block += 1
        self._index, self._next = ActivationIndex(samples=self._next), {}

    def _read_index(self) -> ActivationIndex:
        path = self._path(self.block, _INDEX)
        what, fix = "The index of a block's activations is damaged", f"remove {self.folder} and calibrate again"
        return parse_json(ActivationIndex, read_regular_bytes(path), BundleError, what, where=path, fix=fix)

    def _path(self, block: int, suffix: str) -> Path:
        return self.folder / f"{block:04}{suffix}"


def _damaged(path: Path) -> BundleError:
    return BundleError(
        "The activations of a block are damaged.", where=path, fix=f"remove {path.parent} and calibrate again"
    )
