"""The activations between two blocks, one tensor per sample: in memory, and in files.

FOLDER/0007.data   what the samples bring to block 7, one tensor behind the other
FOLDER/0007.json   where each begins; written last: a calibration that was stopped can go on from block 7

Those of a block are written where it does not fit into memory, and otherwise after so much work that it should not have
to be repeated. They stay until those of a later block are complete.
"""

from __future__ import annotations

import math
import time
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

    Args:
        folder: of the files; those of an earlier, interrupted run are used by `resume_at`, else removed.
        limit_bytes: how much is kept in memory. A block whose activations do not fit is saved, all of it.
        save_after_s: seconds of work after which a block is saved in any case.
    """

    def __init__(self, folder: Path, limit_bytes: int, save_after_s: float) -> None:
        self.folder, self.limit_bytes, self.save_after_s = folder, limit_bytes, save_after_s
        self.block = 0
        self._held: dict[tuple[int, int], Tensor] = {}
        self._held_bytes = 0
        self._index = ActivationIndex(samples={})
        self._next: dict[int, StoredActivations] = {}
        self._file: IO[bytes] | None = None
        self._saved, self._saved_at = 0, time.monotonic()

    def resume_at(self, latest: int) -> int:
        """Start at the last block up to `latest` whose activations are complete; at block 0 without any.

        Raises:
            BundleError: the activations of that block are damaged.
        """
        complete = [int(path.stem) for path in self.folder.glob(f"*{_INDEX}")]
        self.block = max((block for block in complete if block <= latest), default=0)
        self._saved = self.block
        self._remove_others()
        if self.block:
            self._index = self._read_index()
        return self.block

    def take(self, sample: int, *, again: bool = False) -> Tensor:
        """Return a sample's activations, on the CPU.

        Args:
            again: whether they will be taken once more; else they are no longer held in memory.
        """
        held = self._held.get((self.block, sample))
        if held is not None:
            if not again:
                del self._held[self.block, sample]
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
        if self._held_bytes + tensor.nbytes <= self.limit_bytes:
            self._held[self.block + 1, sample] = tensor
            self._held_bytes += tensor.nbytes
        else:
            self._write(sample, tensor)

    def complete(self) -> None:
        """Every sample has been put: what does not fit into memory, or is due, is saved. A run that is stopped from
        here on need not compute the next block's inputs again."""
        is_due = time.monotonic() - self._saved_at >= self.save_after_s
        if self._saved > self.block or (self._file is None and not is_due):
            return
        for (block, sample), tensor in self._held.items():
            if block > self.block:
                self._write(sample, tensor)
        if self._file is None:
            return  # no sample
        with closing(self._file) as file:
            self._file = None
        sync_file(Path(file.name))
        text = to_json(ActivationIndex(samples=self._next).model_dump(mode="json"))
        index = self._path(self.block + 1, _INDEX)
        write_atomically(index, lambda unfinished: unfinished.write_text(text, encoding="utf-8"))
        self._saved, self._saved_at = self.block + 1, time.monotonic()

    def advance(self) -> None:
        """Go on to the next block, for which every sample has been put."""
        self.complete()
        if self._saved > self.block:
            self._remove_others()
        self.block += 1
        self._index, self._next = ActivationIndex(samples=self._next), {}

    def _write(self, sample: int, tensor: Tensor) -> None:
        if self._file is None:
            path = self._path(self.block + 1, _DATA)
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("wb")
        dtype = str(tensor.dtype).removeprefix("torch.")
        self._next[sample] = StoredActivations(offset=self._file.tell(), shape=tuple(tensor.shape), dtype=dtype)
        if tensor.numel():
            self._file.write(tensor.flatten().view(torch.uint8).numpy().data)

    def _remove_others(self) -> None:
        """Remove the files of all blocks but the saved one."""
        kept = {self._path(self._saved, suffix) for suffix in (_DATA, _INDEX)} if self._saved else set()
        for path in set(self.folder.glob("*")) - kept:
            path.unlink()

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
