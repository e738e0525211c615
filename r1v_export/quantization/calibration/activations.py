"""The activations between two blocks, one tensor per sample: in memory, and in files.

FOLDER/00003-0007.data   what sample 3 brings to block 7: a line of JSON says its dtype and shape, the numbers follow

What does not fit into memory is written at every block. What does is written from time to time, for a run after an
interrupted one: after each block the samples that were saved longest ago, as many as `SavePolicy` allows. So a run goes
on with each sample at a block of its own, and repeats half of what lies between two of a sample's files, on average
over the samples. A sample's file stays until a later one is complete.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from r1v_export.errors import BundleError
from r1v_export.files import open_regular, write_atomically
from r1v_export.strict import StrictModel, parse_json

_SUFFIX = ".data"
_MAX_HEADER_BYTES = 4096


class StoredActivations(StrictModel):
    """First line of a sample's file."""

    dtype: str
    """Name in torch, such as `float32`."""
    shape: tuple[int, ...]

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype itself."""
        dtype = getattr(torch, self.dtype)
        assert isinstance(dtype, torch.dtype)
        return dtype


@dataclass(frozen=True)
class SavePolicy:
    """How much is written of activations that memory holds.

    Attributes:
        share: of the quantized model's bytes, which all of a calibration writes at most, however long it takes.
        soonest_s: seconds within which no sample is saved twice, and before which nothing is saved.
    """

    share: float = 0.02
    soonest_s: float = 300.0

    def allowed_bytes(self, share_bytes: float, held_bytes: int, seconds: float) -> float:
        """What may be written after a block.

        Args:
            share_bytes: the block's part of `share`.
            held_bytes: of all samples' activations.
            seconds: that the block took.
        """
        return min(share_bytes, held_bytes * (min(1.0, seconds / self.soonest_s) if self.soonest_s else 1.0))


SAVED_BY_DEFAULT = SavePolicy()


class Activations:
    """The inputs of the current block, one tensor per sample, and those of the next block as they are computed.

    Args:
        folder: of the files; those of an earlier, interrupted run are used by `resume_at`, else removed.
        samples: their numbers.
        limit_bytes: how much is kept in memory.
        policy: how much of that is written all the same.
        together: whether samples are saved all or none, so that a run after an interrupted one finds them all at one
            block.
    """

    def __init__(
        self, folder: Path, samples: Iterable[int], limit_bytes: int, policy: SavePolicy, *, together: bool = False
    ) -> None:
        self.folder, self.limit_bytes, self.policy, self.together = folder, limit_bytes, policy, together
        self.block = 0
        self._held: dict[tuple[int, int], Tensor] = {}
        self._held_bytes = 0
        self._files: dict[int, set[int]] = {sample: set() for sample in samples}
        self._credit_bytes = 0.0
        self._started_at = self._began_at = time.monotonic()

    def resume_at(self, latest: int) -> int:
        """Go on with every sample at the last block up to `latest` for which it has a file, else at block 0; return the
        first of these blocks, which becomes the current one."""
        found = {path: _sample_and_block(path) for path in self.folder.glob(f"[0-9]*-[0-9]*{_SUFFIX}")}
        for sample, block in found.values():
            if sample in self._files and block <= latest:
                self._files[sample].add(block)
        if self.together:
            common = self._common_block()
            self._files = {sample: blocks & {common} for sample, blocks in self._files.items()}
        self._remove_replaced()
        for path in self.folder.glob("*"):
            if path not in found or found[path][1] not in self._files.get(found[path][0], ()):
                path.unlink(missing_ok=True)
        self.block = min(map(self.begins_at, self._files), default=0)
        self._started_at = self._began_at = time.monotonic()
        return self.block

    def begins_at(self, sample: int) -> int:
        """The last block for which a sample has a file: a run that begins now computes none before it."""
        return max(self._files[sample], default=0)

    def take(self, sample: int, *, again: bool = False) -> Tensor:
        """Return a sample's activations, on the CPU.

        Args:
            again: whether they will be taken once more; else they are no longer held in memory.

        Raises:
            BundleError: their file is damaged.
        """
        held = self._held.get((self.block, sample))
        if held is None:
            return _read(self._path(sample, self.block))
        if not again:
            del self._held[self.block, sample]
            self._held_bytes -= held.nbytes
        return held

    def put(self, sample: int, tensor: Tensor) -> None:
        """Keep the activations [...] that a sample brings to the next block."""
        tensor = tensor.cpu().contiguous()
        if self._held_bytes + tensor.nbytes <= self.limit_bytes:
            self._held[self.block + 1, sample] = tensor
            self._held_bytes += tensor.nbytes
        else:
            self._write(sample, self.block + 1, tensor)

    def advance(self, share_bytes: float = math.inf, *, is_last: bool = False) -> None:
        """Go on to the next block, for which every sample has been put, and save what is due.

        Args:
            share_bytes: the finished block's part of the policy's share.
            is_last: whether no block reads them.
        """
        now = time.monotonic()
        self.block, seconds, self._began_at = self.block + 1, now - self._began_at, now
        self._remove_replaced()
        allowed = self.policy.allowed_bytes(share_bytes, self._held_bytes, seconds)
        self._credit_bytes = min(self._credit_bytes + allowed, self._held_bytes)
        if not is_last and now - self._started_at >= self.policy.soonest_s:
            self._save_oldest()

    def _save_oldest(self) -> None:
        due = sorted((sample for block, sample in self._held if block == self.block), key=self.begins_at)
        sizes = {sample: self._held[self.block, sample].nbytes for sample in due}
        if self.together and sum(sizes.values()) > self._credit_bytes:
            return
        for sample in due:
            if sizes[sample] > self._credit_bytes:
                break
            self._write(sample, self.block, self._held[self.block, sample])
            self._credit_bytes -= sizes[sample]
            self._remove_replaced()

    def _write(self, sample: int, block: int, tensor: Tensor) -> None:
        header = StoredActivations(dtype=str(tensor.dtype).removeprefix("torch."), shape=tuple(tensor.shape))

        def write(unfinished: Path) -> None:
            with unfinished.open("wb") as file:
                file.write(header.model_dump_json().encode() + b"\n")
                if tensor.numel():
                    file.write(tensor.flatten().view(torch.uint8).numpy().data)

        write_atomically(self._path(sample, block), write)
        self._files[sample].add(block)

    def _common_block(self) -> int:
        """The last block for which every sample has a file; 0 without one."""
        return max(set.intersection(*self._files.values()), default=0) if self._files else 0

    def _remove_replaced(self) -> None:
        """Remove files that neither this run reads nor one after it."""
        common = self._common_block() if self.together else 0
        for sample, blocks in self._files.items():
            for block in blocks - {max(blocks, default=0), common}:
                self._path(sample, block).unlink()
                blocks.remove(block)

    def _path(self, sample: int, block: int) -> Path:
        return self.folder / f"{sample:05}-{block:04}{_SUFFIX}"


def _sample_and_block(path: Path) -> tuple[int, int]:
    sample, block = path.stem.split("-")
    return int(sample), int(block)


def _read(path: Path) -> Tensor:
    damage, fix = "The activations of a block are damaged", f"remove {path.parent} and calibrate again"
    with open_regular(path) as file:
        header = file.readline(_MAX_HEADER_BYTES)
        stored = parse_json(StoredActivations, header, BundleError, damage, where=path, fix=fix)
        size_bytes = math.prod(stored.shape) * stored.torch_dtype.itemsize
        if os.fstat(file.fileno()).st_size != len(header) + size_bytes:
            raise BundleError(f"{damage}.", where=path, fix=fix)
        tensor = torch.empty(stored.shape, dtype=stored.torch_dtype)
        if size_bytes:
            file.readinto(tensor.flatten().view(torch.uint8).numpy().data)
    return tensor
