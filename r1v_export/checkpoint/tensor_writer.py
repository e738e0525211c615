"""`.safetensors` files written chunk by chunk, or as holes of the true size; the memory in use is one chunk."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import torch

from r1v_export.checkpoint.tensor_file import DTYPES, StoredTensor
from r1v_export.checkpoint.tensor_store import INDEX_NAME
from r1v_export.hashed_files import HashedFile, open_hashed
from r1v_export.side_by_side import side_by_side

_DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_LENGTH_BYTES = 8
ALIGNMENT_BYTES, PAGE_BYTES = 8, 4096
"""Where a file's first tensor begins, and where it does so that engines can map it."""
SHARD_BYTES = 5_000_000_000
"""Size of a weight file, as transformers saves them."""


@dataclass(frozen=True)
class NewTensor:
    """A tensor to be written: its values come in flat chunks, in order, when they are asked for."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    chunks: Callable[[], Iterable[torch.Tensor]]

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize


def write_tensors(
    folder: Path,
    tensors: Sequence[NewTensor],
    *,
    shards: int | None = None,
    file: str | None = None,
    sparse: bool = False,
    alignment: int = ALIGNMENT_BYTES,
    elsewhere: Mapping[str, StoredTensor] | None = None,
    apart: Sequence[NewTensor] = (),
) -> Iterator[int]:
    """Write tensors in order into about `shards` files of equal size, with an index where there are several.

    What `record_hashes` has a journal of is not written again.

    Args:
        shards: as many as keep each below `SHARD_BYTES`, about, if omitted.
        file: name of a single file that holds all of them.
        sparse: write headers only and leave the data as holes, which read as zeros and take no disk.
        alignment: of a file's first tensor, in bytes.
        elsewhere: tensors that are in other files of the folder, for the index.
        apart: tensors for files of their own, whose bytes so depend on nothing else. A second thread writes them.

    Yields:
        Bytes of weights written so far, after every chunk.
    """
    elsewhere = elsewhere or {}
    groups = _split(tensors, 1 if file else shards or _shards(tensors))
    is_only = len(groups) == 1 and not elsewhere and not apart
    files = {file or "model.safetensors": groups[0]} if is_only else _named("model", groups)
    files_apart = _named("unquantized", _split(apart, _shards(apart))) if apart else {}
    done = 0
    for written in side_by_side(*(_write_files(folder, each, sparse, alignment) for each in (files, files_apart))):
        done += written
        yield done
    files |= files_apart
    if not is_only:
        weight_map = {tensor.name: name for name, group in files.items() for tensor in group}
        weight_map |= {name: tensor.file.name for name, tensor in elsewhere.items()}
        total = done + sum(tensor.nbytes for tensor in elsewhere.values())
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / INDEX_NAME).write_text(json.dumps(index, indent=2) + "\n")


def _shards(tensors: Sequence[NewTensor]) -> int:
    return math.ceil(sum(tensor.nbytes for tensor in tensors) / SHARD_BYTES)


def _split(tensors: Sequence[NewTensor], shards: int) -> list[list[NewTensor]]:
    """Cut a list of tensors where the bytes before a tensor pass each n-th part of all bytes."""
    total, position = sum(tensor.nbytes for tensor in tensors), 0
    groups: dict[int, list[NewTensor]] = {}
    for tensor in tensors:
        groups.setdefault(position * shards // total, []).append(tensor)
        position += tensor.nbytes
    return list(groups.values()) or [[]]


def _named(stem: str, groups: Sequence[list[NewTensor]]) -> dict[str, list[NewTensor]]:
    count = len(groups)
    return {f"{stem}-{number:05}-of-{count:05}.safetensors": group for number, group in enumerate(groups, 1)}


def _write_files(
    folder: Path, files: Mapping[str, Sequence[NewTensor]], sparse: bool, alignment: int
) -> Generator[int]:
    with ExitStack() as last:
        for name, tensors in files.items():
            if sparse:
                yield from _write_holes(folder / name, tensors, alignment)
                continue
            header = _header(tensors, alignment)
            ends = [*accumulate((tensor.nbytes for tensor in tensors), initial=len(header))][1:]
            with last.pop_all():  # the file before is finished while this one is begun
                file = last.enter_context(open_hashed(folder / name, ends))
                yield from _write_tensors(file, header, tensors, ends)


def _write_holes(path: Path, tensors: Sequence[NewTensor], alignment: int) -> Iterator[int]:
    with path.open("wb") as holes:
        holes.write(_header(tensors, alignment))
        for tensor in tensors:
            holes.seek(tensor.nbytes, 1)
            yield tensor.nbytes
        holes.truncate()


def _write_tensors(file: HashedFile, header: bytes, tensors: Sequence[NewTensor], ends: Sequence[int]) -> Iterator[int]:
    """Give a file its tensors, which end at these bytes; it need not have written them."""
    if not file.start:
        file.write(header)
    for tensor, end in zip(tensors, ends, strict=True):
        if end <= file.start:
            yield tensor.nbytes
            continue
        for chunk in tensor.chunks():
            yield file.write(chunk.to(tensor.dtype).contiguous().view(torch.uint8).numpy().data)
            del chunk  # before the next one is made
        file.end_part()
    file.end()


def _header(tensors: Sequence[NewTensor], alignment: int) -> bytes:
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    position = 0
    for tensor in tensors:
        offsets = [position, position + tensor.nbytes]
        entries[tensor.name] = {
            "dtype": _DTYPE_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": offsets,
        }
        position = offsets[1]
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + _LENGTH_BYTES) % alignment)
    return len(text).to_bytes(_LENGTH_BYTES, "little") + text
