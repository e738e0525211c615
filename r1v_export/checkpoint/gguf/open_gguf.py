"""A model as two GGUF files, `MODEL.gguf` and the mmproj file next to it, opened as a checkpoint."""

from __future__ import annotations

import importlib.util
import math
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from r1v_export.checkpoint.config import read_configuration
from r1v_export.checkpoint.names import expected_tensors
from r1v_export.checkpoint.tensor_file import StoredTensor
from r1v_export.errors import CapabilityError, CheckpointError, UsageError
from r1v_export.model_spec import ModelSpec

if TYPE_CHECKING:
    from r1v_export.checkpoint.gguf.file import GgufFile

SUFFIX = ".gguf"
REQUIREMENT = "gguf>=0.19,<1"


@dataclass(frozen=True)
class Imported:
    """What the rest of a checkpoint is read from."""

    folder: Path
    """Configuration and tokenizer, written for the time that `kept` lives."""
    tensors: Mapping[str, StoredTensor]
    """By canonical name; what no part of the model takes by its own."""
    kept: tempfile.TemporaryDirectory[str]


@dataclass(frozen=True)
class GgufTensor(StoredTensor):
    """A canonical tensor: one of a file, or several joined along their rows, as the model has it."""

    source: GgufFile
    parts: tuple[str, ...]
    patches_first: bool
    """Whether the class token's position stands behind the patches'."""

    def read(self) -> Tensor:
        rows = self.shape[0] // len(self.parts)
        shape = self.shape if len(self.parts) == 1 else (rows, *self.shape[1:])
        tensors = [self._as_trained(self.source.read(part), shape).to(self.dtype) for part in self.parts]
        tensor = tensors[0] if len(tensors) == 1 else torch.cat(tensors)
        return tensor.roll(1, 1) if self.patches_first else tensor

    def read_start(self, size_bytes: int) -> bytes:
        start = self.read().flatten()[: size_bytes // self.dtype.itemsize]
        return start.view(torch.uint8).numpy().tobytes()

    def _as_trained(self, tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Without the second half of the channels of a widened tower."""
        tensor = tensor.reshape((1,) * (len(shape) - tensor.ndim) + tuple(tensor.shape))
        for axis, size in enumerate(shape):
            if tensor.shape[axis] == 2 * size:
                channels = self._channels if axis == len(shape) - 1 and self._channels else size
                halves = tensor.unflatten(axis, (-1, 2 * channels))
                tensor = halves.narrow(axis + 1, 0, channels).flatten(axis, axis + 1)
        return tensor

    @property
    def _channels(self) -> int | None:
        """The channels of one patch, where several stand side by side."""
        width = self.source.value("r1v_export.tower_channels")
        return width if self.name in ("mlp1.0.weight", "mlp1.0.bias", "mlp1.1.weight") else None


def is_gguf(model: object) -> bool:
    """Whether MODEL is a GGUF file."""
    return isinstance(model, (str, Path)) and Path(model).suffix == SUFFIX and not Path(model).is_dir()


def open_gguf(path: Path, revision: str | None = None) -> Imported:
    """Open a language model and the mmproj file next to it; no weight is read.

    Raises:
        UsageError: a revision, which only hub ids have.
        CapabilityError: the package gguf is not installed.
        CheckpointError: a file is missing, damaged, of another architecture, or has a type that is not read.
    """
    if revision is not None:
        raise UsageError("A revision requires a hub id.", found=f"--revision {revision}", fix="omit it")
    if importlib.util.find_spec("gguf") is None:
        raise CapabilityError(
            "GGUF files cannot be read.",
            where=path,
            expected=REQUIREMENT,
            found="gguf is not installed",
            fix=f"pip install '{REQUIREMENT}'",
        )
    from r1v_export.checkpoint.gguf.configuration import write_configuration
    from r1v_export.checkpoint.gguf.file import GgufFile
    from r1v_export.checkpoint.gguf.names import MMPROJ_FILE, MODEL_FILE

    model = GgufFile(path)
    _refuse_split(model)
    mmproj = GgufFile(_mmproj_of(path))
    kept = tempfile.TemporaryDirectory(prefix="r1v-gguf-")
    folder = Path(kept.name)
    write_configuration(model, mmproj, folder)
    tied = "output.weight" not in model.tensors
    spec = read_configuration(folder, stores_lm_head=not tied, stored_dtype="float32").spec
    return Imported(folder, _tensors(spec, {MODEL_FILE: model, MMPROJ_FILE: mmproj}), kept)


def _refuse_split(model: GgufFile) -> None:
    count = model.value("split.count", 1)
    if count != 1:
        raise model.unusable("one file", f"a part of {count}", "join the parts: llama-gguf-split --merge FIRST OUT")


def _mmproj_of(path: Path) -> Path:
    found = sorted(each for each in path.parent.glob(f"*{SUFFIX}") if "mmproj" in each.name and each != path)
    if len(found) != 1:
        raise CheckpointError(
            "A vision-language model in GGUF is two files.",
            where=path.parent,
            expected=f"one file with mmproj in its name next to {path.name}",
            found=", ".join(each.name for each in found) or "none",
            fix="put the mmproj file of the model next to it, and no other",
        )
    return found[0]


def _tensors(spec: ModelSpec, files: Mapping[str, GgufFile]) -> dict[str, StoredTensor]:
    from r1v_export.checkpoint.gguf.configuration import WRITTEN_BY
    from r1v_export.checkpoint.gguf.names import POSITION, stored_tensors

    tensors: dict[str, StoredTensor] = {}
    used: set[tuple[str, str]] = set()
    shapes = expected_tensors(spec)
    for canonical, stored in stored_tensors(spec).items():
        file = files[stored.file]
        if not all(name in file.tensors for name in stored.names):
            continue
        used |= {(stored.file, name) for name in stored.names}
        dtypes = {file.dtype(name) for name in stored.names}
        dtype = dtypes.pop() if len(dtypes) == 1 else torch.float32
        shape = _shape(file, canonical, stored.names, shapes[canonical])
        nbytes = math.prod(shape) * dtype.itemsize
        ours = canonical == POSITION and file.value(WRITTEN_BY) is not None
        tensors[canonical] = GgufTensor(file.path, canonical, dtype, shape, 0, nbytes, file, stored.names, ours)
    for key, file in files.items():
        for name in file.tensors:
            if (key, name) not in used:
                what = (file.path, name, file.dtype(name), file.shape(name), 0, 0, file, (name,), False)
                tensors[name] = GgufTensor(*what)
    return tensors


def _shape(file: GgufFile, canonical: str, names: tuple[str, ...], expected: tuple[int, ...]) -> tuple[int, ...]:
    """A tensor's shape as the model has it: the expected one where the file's can be read as it, else the file's."""
    shapes = [file.shape(name) for name in names]
    joined = (sum(shape[0] for shape in shapes), *shapes[0][1:]) if len(names) > 1 else shapes[0]
    padded = (1,) * (len(expected) - len(joined)) + joined
    width = file.value("r1v_export.tower_channels")
    times = (1, 2) if width and width != file.value("clip.vision.embedding_length") else (1,)
    fits = len(padded) == len(expected) and all(
        found in [factor * size for factor in times] for found, size in zip(padded, expected, strict=True)
    )
    return expected if fits else joined
