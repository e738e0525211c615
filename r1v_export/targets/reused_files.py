"""Weight files of a Hugging Face folder that are written nowhere, because the same bytes lie in another file.

What is not quantized has the same bytes in every Hugging Face folder of a bundle, whatever its layout. It lies in files
of its own, so that a second folder has the first one's files, as hard links. With `--link-weights` files of the
checkpoint that hold nothing else are linked, too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path

import torch

from r1v_export.checkpoint.listing import shorten
from r1v_export.checkpoint.tensor_file import StoredTensor, read_header
from r1v_export.checkpoint.tensor_writer import NewTensor
from r1v_export.errors import CapabilityError
from r1v_export.files import clone_or_copy, hard_link
from r1v_export.hashed_files import note_hash

TensorKey = tuple[str, torch.dtype, tuple[int, ...]]
"""Name, dtype and shape."""
SOURCE_PREFIX = "source-"
"""Of the names that files of the checkpoint have in a folder, whose own have the same."""


@dataclass(frozen=True)
class UnquantizedTensor(NewTensor):
    """A tensor that is the same in every Hugging Face folder of a bundle.

    is_source: whether it is the checkpoint's as it stands there, and not what calibration made of it.
    """

    is_source: bool


@dataclass(frozen=True)
class ReusedFiles:
    """What a folder may hold without writing it.

    siblings: weight files of each finished Hugging Face folder of this build, and their SHA-256.
    source: weight files of the checkpoint.
    """

    siblings: tuple[Mapping[Path, str], ...] = ()
    source: tuple[Path, ...] = ()


def link_weights(
    reused: ReusedFiles, tensors: Mapping[str, UnquantizedTensor], out: Path
) -> Mapping[str, StoredTensor]:
    """Link files that hold the tensors, by name, into the folder `out`.

    Returns:
        The tensors that need not be written, in their files in `out`.

    Raises:
        CapabilityError: a file of the checkpoint cannot be linked, or none can.
    """
    known = {key_of(tensor) for tensor in tensors.values()}
    for files in reused.siblings:
        found = {path: header for path in files if (header := _matching(path, known))}
        if {name for header in found.values() for name in header} == tensors.keys():
            for path in found:
                _link_sibling(path, files[path], out / path.name)
            return _stored(out / path.name for path in found)
    if not reused.source:
        return {}
    linked = []
    for path in linkable(reused.source, {key_of(tensor) for tensor in tensors.values() if tensor.is_source}):
        linked.append(out / f"{SOURCE_PREFIX}{path.name}")
        _link_source(path, linked[-1])
    return _stored(linked)


def linkable(source: Sequence[Path], unchanged: Set[TensorKey]) -> list[Path]:
    """The weight files of a checkpoint that hold nothing but tensors that are stored as they are there.

    Raises:
        CapabilityError: there are none.
    """
    found = [path for path in source if _matching(path, unchanged)]
    if not found:
        path = source[0]
        others = [tensor.name for tensor in read_header(path).values() if key_of(tensor) not in unchanged]
        raise CapabilityError(
            "No weight file of the checkpoint can be linked: each holds tensors that are quantized or rewritten.",
            where=path.parent,
            expected="a file of which every tensor is stored as it is there",
            found=f"{path.name} with {shorten(others)}",
            fix="omit --link-weights",
        )
    return found


def key_of(tensor: NewTensor | StoredTensor) -> TensorKey:
    """What a tensor of a file is known by."""
    return tensor.name, tensor.dtype, tensor.shape


def _matching(path: Path, known: Set[TensorKey]) -> Mapping[str, StoredTensor]:
    """The tensors of a file if all are known; none if not."""
    header = read_header(path)
    return header if all(key_of(tensor) in known for tensor in header.values()) else {}


def _stored(files: Iterable[Path]) -> dict[str, StoredTensor]:
    return {name: tensor for file in files for name, tensor in read_header(file).items()}


def _link_sibling(path: Path, sha256: str, target: Path) -> None:
    try:
        hard_link(path, target)
    except OSError:  # a file system without hard links
        clone_or_copy(path, target)
    note_hash(target, sha256)


def _link_source(path: Path, target: Path) -> None:
    try:
        hard_link(path, target)
    except OSError as error:
        raise CapabilityError(
            "A file of the checkpoint cannot be linked into the bundle.",
            where=path,
            expected="a file system with hard links, which the bundle is on, too, and the right to link the file",
            found=error.strerror or error,
            fix="omit --link-weights, or choose with -o a folder on the checkpoint's file system",
        ) from error
