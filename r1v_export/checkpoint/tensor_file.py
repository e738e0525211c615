"""One `.safetensors` file: its header, strictly checked, and its tensors, mapped into memory one at a time.

Format: 8 bytes little-endian header length, a JSON object `{name: {dtype, shape, data_offsets}}`, then the data, in
which the tensors lie end to end with no holes. See https://github.com/huggingface/safetensors#format.
"""

from __future__ import annotations

import math
import mmap
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch

from r1v_export.count import Count
from r1v_export.errors import CheckpointError
from r1v_export.files import open_regular, require_readable
from r1v_export.hashed_reads import note_read
from r1v_export.quoting import shorten_text, shorten_value
from r1v_export.strict import load_json

DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""safetensors dtype names -> torch."""

_LENGTH_BYTES = 8
_MAX_HEADER_BYTES = 100_000_000  # the format's own limit
_MAX_AXES = 64
_LFS_POINTER_START = b"version "
_REPLACE = "download or copy this file again"
_PULL = "run `git lfs pull` in the checkpoint's folder"


@dataclass(frozen=True)
class StoredTensor:
    """Where one tensor is stored: `nbytes` bytes at `offset` of `file`, in row-major order."""

    file: Path
    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int
    nbytes: int

    def read(self) -> torch.Tensor:
        """The tensor, read from the disk and mapped copy-on-write: its pages are given back with it, or when memory is
        short.

        Raises:
            CheckpointError: the file is gone or has been cut since its header was read, or a part of it is unreadable.
        """
        if self.nbytes == 0:
            return torch.empty(self.shape, dtype=self.dtype)
        note_read(self.file, self.offset, self.nbytes)
        lead = self.offset % mmap.ALLOCATIONGRANULARITY
        try:
            with open_regular(self.file) as file:
                mapped = mmap.mmap(
                    file.fileno(), lead + self.nbytes, access=mmap.ACCESS_COPY, offset=self.offset - lead
                )
                require_readable(mapped, file, self.offset - lead)
        except (OSError, ValueError) as error:
            raise self._unreadable(error) from error
        count = math.prod(self.shape)
        return torch.frombuffer(mapped, dtype=self.dtype, count=count, offset=lead).view(self.shape)

    def read_start(self, size_bytes: int) -> bytes:
        """Its first bytes, or all where it has fewer; no others are read from the disk.

        Raises:
            CheckpointError: as `read`.
        """
        size_bytes = min(size_bytes, self.nbytes)
        try:
            with open_regular(self.file) as file:
                file.seek(self.offset)
                start = file.read(size_bytes)
        except OSError as error:
            raise self._unreadable(error) from error
        if len(start) < size_bytes:
            raise self._unreadable(f"the file ends at byte {self.offset + len(start)}")
        return start

    def _unreadable(self, found: object) -> CheckpointError:
        return CheckpointError(
            f"Tensor {self.name} can no longer be read.",
            where=self.file,
            found=found,
            fix="check its disk, or the connection to it; leave the checkpoint's files in place until the command has "
            "ended, and run it again",
        )


def read_header(path: Path) -> dict[str, StoredTensor]:
    """Every tensor of a `.safetensors` file, from its header alone; no weight is read.

    Raises:
        CheckpointError: the file is truncated, has bytes to spare, or its header breaks the format.
    """
    try:
        file_bytes = path.stat().st_size
        with open_regular(path) as file:
            length_field = file.read(_LENGTH_BYTES)
            if length_field == _LFS_POINTER_START:
                _fail(path, "is a Git LFS pointer, not the weights", "a safetensors file", "a text file", _PULL)
            header_bytes = int.from_bytes(length_field, "little")
            if len(length_field) < _LENGTH_BYTES or _LENGTH_BYTES + header_bytes > file_bytes:
                _fail(
                    path,
                    "ends before its header does",
                    str(Count(_LENGTH_BYTES + header_bytes, "byte")),
                    str(Count(file_bytes, "byte")),
                )
            if header_bytes > _MAX_HEADER_BYTES:
                _fail(path, "has an impossible header length", f"at most {_MAX_HEADER_BYTES}", header_bytes)
            header = _parse_header(path, file.read(header_bytes))
    except OSError as error:
        raise CheckpointError(
            "A weight file cannot be read.",
            where=path,
            found=error.strerror,
            fix="check that it exists and its permissions",
        ) from error
    header.pop("__metadata__", None)
    data_start = _LENGTH_BYTES + header_bytes
    tensors = {name: _stored_tensor(path, name, entry, data_start) for name, entry in header.items()}
    _check_layout(path, tensors, data_start, file_bytes)
    return tensors


def _parse_header(path: Path, raw: bytes) -> dict[str, Any]:
    what = f"Weight file {path.name} has a header that is not usable"
    header = load_json(raw, CheckpointError, what, where=path, fix=_REPLACE, unique_keys=True)
    if not isinstance(header, dict):
        _fail(path, "has a header that is not JSON", "a JSON object", type(header).__name__)
    return header


def _stored_tensor(path: Path, name: str, entry: Any, data_start: int) -> StoredTensor:
    """One header entry, checked against the bytes it claims."""
    what = f"describes tensor {_quoted(name)} wrongly"
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        _fail(path, what, "dtype, shape and data_offsets", entry)
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        _fail(path, f"holds tensor {_quoted(name)} in an unknown dtype", ", ".join(DTYPES), dtype)
    if not _are_sizes(shape) or not _are_sizes(offsets) or len(offsets) != 2:
        found = f"shape {shorten_value(shape)}, data_offsets {shorten_value(offsets)}"
        _fail(path, what, "non-negative integers", found)
    begin, end = offsets
    nbytes = math.prod(shape) * DTYPES[dtype].itemsize
    if end - begin != nbytes:
        _fail(path, what, f"{Count(nbytes, 'byte')} for {dtype} {shape}", str(Count(end - begin, "byte")))
    return StoredTensor(path, name, DTYPES[dtype], tuple(shape), data_start + begin, nbytes)


def _are_sizes(values: Any) -> bool:
    """A list of 64-bit sizes, no longer than a tensor has axes."""
    return (
        isinstance(values, list)
        and len(values) <= _MAX_AXES
        and all(type(value) is int and 0 <= value < 2**63 for value in values)
    )


def _check_layout(path: Path, tensors: dict[str, StoredTensor], data_start: int, file_bytes: int) -> None:
    """The tensors lie end to end and fill the file."""
    position = data_start
    for tensor in sorted(tensors.values(), key=lambda tensor: (tensor.offset, tensor.nbytes)):
        if tensor.offset != position:
            problem = "overlap" if tensor.offset < position else "leave a hole"
            what = f"has tensors that {problem}, at {_quoted(tensor.name)}"
            _fail(path, what, f"offset {position}", f"offset {tensor.offset}")
        position += tensor.nbytes
    if position != file_bytes:
        problem = "is truncated" if file_bytes < position else "has bytes after its last tensor"
        _fail(path, problem, str(Count(position, "byte")), str(Count(file_bytes, "byte")))


def _fail(path: Path, problem: str, expected: object, found: object, fix: str = _REPLACE) -> NoReturn:
    raise CheckpointError(f"Weight file {path.name} {problem}.", where=path, expected=expected, found=found, fix=fix)


def _quoted(name: str) -> str:
    return f"'{shorten_text(name)}'"
