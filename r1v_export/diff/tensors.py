"""The first tensor in which two bundles differ, in the order of the data flow."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import onnx_ir as ir

from r1v_export import contract
from r1v_export.bundle import ENGINES, GRAPHS, Bundle
from r1v_export.checkpoint.tensor_file import StoredTensor, read_header
from r1v_export.exporters.stored_tensors import read_tensor
from r1v_export.manifest import FileEntry

_GRAPH, _WEIGHTS = ".onnx", ".safetensors"
_ELEMENTS_AT_ONCE = 1 << 22


@dataclass(frozen=True)
class StoredValues:
    """A tensor of a bundle, which is read when asked for."""

    dtype: str
    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]
    """Its values."""


@dataclass(frozen=True)
class TensorDifference:
    """A tensor that is another one in the second bundle, or in one of the bundles alone."""

    file: str
    tensor: str
    first: str
    second: str
    """Type and shape, or `not there`."""
    differing: int | None = None
    elements: int | None = None
    """Of tensors of one type and shape."""
    max_abs_difference: float | None = None
    """Of elements that are finite in both."""


def first_difference(first: Bundle, second: Bundle) -> TensorDifference | None:
    """Compare graphs, then engines, tensor by tensor, until one differs.

    A graph is read where it, or any file that may hold its tensors, is another one in the second bundle.

    Raises:
        BundleError, CheckpointError, OSError: a file cannot be read.
    """
    for name in _weight_files(first, second):
        if found := _first_in_file(name, _tensors(first, name), _tensors(second, name)):
            return found
    return None


def _weight_files(first: Bundle, second: Bundle) -> list[str]:
    """Files with tensors, of which something differs, that both bundles have."""
    names = [f"{GRAPHS}/{graph}{_GRAPH}" for graph in contract.GRAPHS]
    names += sorted(name for name in first.manifest.files if name.startswith(f"{ENGINES}/") and _holds_tensors(name))
    both = [name for name in names if name in first.manifest.files and name in second.manifest.files]
    return [name for name in both if _around(first, name) != _around(second, name)]


def _holds_tensors(name: str) -> bool:
    return name.endswith((_GRAPH, _WEIGHTS))


def _around(bundle: Bundle, name: str) -> Mapping[str, FileEntry]:
    """A file with tensors; with a graph, all files in which its tensors may lie."""
    files = bundle.manifest.files
    if not name.endswith(_GRAPH):
        return {name: files[name]}
    folders = (f"{GRAPHS}/", f"{ENGINES}/")
    data = {path: entry for path, entry in files.items() if path.startswith(folders) and not _holds_tensors(path)}
    return {name: files[name], **data}


def _tensors(bundle: Bundle, name: str) -> dict[str, StoredValues]:
    path = bundle.folder / name
    return dict(_of_graph(path)) if name.endswith(_GRAPH) else dict(_of_weights(path))


def _of_graph(path: Path) -> Iterator[tuple[str, StoredValues]]:
    for name, value in ir.load(path).graph.initializers.items():
        if (tensor := value.const_value) is not None:
            yield name, StoredValues(str(tensor.dtype), tuple(tensor.shape.numpy()), partial(read_tensor, tensor))


def _of_weights(path: Path) -> Iterator[tuple[str, StoredValues]]:
    for name, stored in read_header(path).items():
        dtype = str(stored.dtype).removeprefix("torch.").upper()
        yield name, StoredValues(dtype, stored.shape, lambda stored=stored: _values(stored))  # type: ignore[misc]


def _values(stored: StoredTensor) -> np.ndarray:
    tensor = stored.read()
    values: np.ndarray = (tensor.float() if tensor.is_floating_point() else tensor).numpy()
    return values


def _first_in_file(
    file: str, first: Mapping[str, StoredValues], second: Mapping[str, StoredValues]
) -> TensorDifference | None:
    for name in [*first, *(name for name in second if name not in first)]:
        one, other = first.get(name), second.get(name)
        kind, other_kind = (f"{side.dtype} {list(side.shape)}" if side else "not there" for side in (one, other))
        if one is None or other is None or kind != other_kind:
            return TensorDifference(file, name, kind, other_kind)
        if found := _differing(one.read(), other.read()):
            return TensorDifference(file, name, kind, other_kind, *found)
    return None


def _differing(first: np.ndarray, second: np.ndarray) -> tuple[int, int, float] | None:
    """How many elements differ, of how many, and by how much finite ones do at most; NaN equals NaN."""
    one, other, differing, largest = first.reshape(-1), second.reshape(-1), 0, 0.0
    for start in range(0, one.size, _ELEMENTS_AT_ONCE):
        wide = [side[start : start + _ELEMENTS_AT_ONCE].astype(np.float64) for side in (one, other)]
        unlike = ~((wide[0] == wide[1]) | (np.isnan(wide[0]) & np.isnan(wide[1])))
        if unlike.any():
            differing += int(unlike.sum())
            finite = unlike & np.isfinite(wide[0]) & np.isfinite(wide[1])
            largest = max(largest, float(np.abs(wide[0][finite] - wide[1][finite]).max(initial=0.0)))
    return (differing, one.size, largest) if differing else None
