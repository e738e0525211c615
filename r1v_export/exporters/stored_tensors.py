"""Where the bytes of a graph's tensors lie: all in files of the bundle, and as many as shape and type need."""

from __future__ import annotations

import math
import posixpath
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath

import numpy as np
import onnx
import onnx_ir as ir

from r1v_export.count import Count
from r1v_export.errors import GraphError
from r1v_export.files import GRAPH_LIMIT_BYTES, open_regular, read_regular_bytes
from r1v_export.manifest import FileEntry

_FIX = "do not use this bundle; fetch it again, or build it again"
_BITS = {kind.value: kind.bitwidth for kind in ir.DataType if kind not in (ir.DataType.UNDEFINED, ir.DataType.STRING)}
"""Size of an element whose bytes are stored raw."""


def check_stored_tensors(bundle: Path, graph: str, files: Mapping[str, FileEntry]) -> None:
    """Check every tensor of a graph: initializers and attributes, of subgraphs and functions too. No weight is read.

    Args:
        bundle: the folder.
        graph: path of the ONNX file in it.
        files: of the bundle, whose sizes have been compared with the manifest.

    Raises:
        GraphError: the graph cannot be read, or a tensor's bytes lie outside the bundle, beyond the end of their file,
            or are not as many as its shape and type need.
    """
    path = bundle / graph
    try:
        model = onnx.load_model_from_string(read_regular_bytes(path, GRAPH_LIMIT_BYTES))
    except Exception as error:  # protobuf's classes share no base with the file system's
        raise GraphError("A graph cannot be read.", where=path, found=error, fix=_FIX) from error
    for tensor in _tensors(model):
        if problem := _problem(tensor, posixpath.dirname(graph), files):
            what, expected, found = problem
            raise GraphError(what, where=f"{path}: {tensor.name}", expected=expected, found=found, fix=_FIX)


def read_tensor(tensor: ir.TensorProtocol) -> np.ndarray:
    """Values of an initializer, of its shape and type. External ones are read here: onnx_ir refuses files with several
    hard links, as `deploy triton` makes them.

    Raises:
        OSError: the file cannot be read.
    """
    if not isinstance(tensor, ir.ExternalTensor):
        return tensor.numpy()
    with open_regular(tensor.path) as file:
        file.seek(tensor.offset or 0)
        raw = file.read(tensor.nbytes)
    stored = onnx.TensorProto(data_type=tensor.dtype.value, dims=tensor.shape.numpy(), raw_data=raw)
    return onnx.numpy_helper.to_array(stored)


def _problem(
    tensor: onnx.TensorProto, folder: str, files: Mapping[str, FileEntry]
) -> tuple[str, object, object] | None:
    """What, expected and found of a tensor that cannot be used."""
    is_external = tensor.data_location == onnx.TensorProto.EXTERNAL
    if not is_external and not tensor.HasField("raw_data"):
        return None  # typed fields, which readers count themselves
    if tensor.data_type not in _BITS or any(size < 0 for size in tensor.dims):
        found = f"type {tensor.data_type}, shape {list(tensor.dims)[:8]}"
        return "A tensor has an unknown type or shape.", "an element type of ONNX and sizes from 0", found
    nbytes = (math.prod(tensor.dims) * _BITS[tensor.data_type] + 7) // 8
    if not is_external:
        size = len(tensor.raw_data)
        return (
            None
            if size == nbytes
            else ("A tensor is not of its shape's size.", str(Count(nbytes, "byte")), str(Count(size, "byte")))
        )
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    file = _inside(location, folder, files)
    if file is None:
        return "A graph's weights lie outside its bundle.", "a file of the bundle", location
    offset, length = _number(entries.get("offset", "0")), _number(entries.get("length", str(nbytes)))
    if offset is None or length is None:
        return "A tensor's place is no number.", "offset and length in bytes", entries
    if length != nbytes:
        return "A tensor is not of its shape's size.", str(Count(nbytes, "byte")), str(Count(length, "byte"))
    if offset + length > files[file].size:
        return (
            "A tensor ends beyond its file.",
            f"at most {Count(files[file].size, 'byte')} in {file}",
            f"{offset} + {length}",
        )
    return None


def _inside(location: str, folder: str, files: Mapping[str, FileEntry]) -> str | None:
    """The file of the bundle that a location names: relative to the graph's folder, or, of engines, to the bundle."""
    parts = PurePosixPath(location.replace("\\", "/"))
    if not location or parts.is_absolute() or ".." in parts.parts:
        return None
    own = f"{folder}/{location}" if folder else location
    return own if own in files else location if folder.startswith("engines/") and location in files else None


def _number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else None


def _tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every tensor of a model; graphs within graphs are walked without recursion."""
    graphs, nodes = [model.graph], [node for function in model.functions for node in function.node]
    while graphs or nodes:
        if graphs:
            graph = graphs.pop()
            yield from graph.initializer
            yield from _parts(graph.sparse_initializer)
            nodes += graph.node
        for attribute in nodes.pop().attribute if nodes else ():
            yield from (attribute.t, *attribute.tensors) if attribute.HasField("t") else attribute.tensors
            yield from _parts([attribute.sparse_tensor, *attribute.sparse_tensors])
            graphs += [attribute.g, *attribute.graphs] if attribute.HasField("g") else attribute.graphs


def _parts(sparse: Iterable[onnx.SparseTensorProto]) -> Iterator[onnx.TensorProto]:
    return (part for tensor in sparse for part in (tensor.values, tensor.indices))
