"""Graphs with 4-bit weights as ONNX Runtime has optimized them, kept between processes on one machine.

Bringing 4-bit weights from the standard layout into that of MatMulNBits is most of opening such a graph, and the same
work each time. What comes out is kept in the user's cache folder, whose files can be deleted at any time. The name of
an entry holds a hash of all that decides its content: ONNX Runtime's build, the processor, the session's entries, the
graph, and the path, size, inode and time of change of its weight files. So nothing stale is ever found.

ONNX Runtime packs weights node by node, in the file's order, and holds those of a node twice meanwhile. So nodes with
the largest weights, a decoder's head, are kept in front: little else is packed then.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np

from r1v_export.files import GRAPH_LIMIT_BYTES, read_regular_bytes
from r1v_export.targets.onnxruntime.graph_message import Graph, Model, Tensor
from r1v_export.targets.onnxruntime.library import ort
from r1v_export.targets.onnxruntime.session_options import CHANGE_NO_RESULT, four_bit_bytes
from r1v_export.user_cache import Entry, digest, file_states, is_off

LEAST_BYTES = 64 << 20
"""Of 4-bit weights: preparing fewer takes less than a fifth of a second."""
_GRAPH, _WEIGHTS = "graph.onnx", "weights.data"
_FORMAT = 2
"""Of what is kept, counted up where it changes."""
_PAGE_BYTES, _PIECE_BYTES = 4096, 1 << 26
_SAVED = {
    "session.optimized_model_external_initializers_file_name": _WEIGHTS,
    "session.optimized_model_external_initializers_min_size_in_bytes": str(_PAGE_BYTES),
}
Create = Callable[[bytes, Path, Callable[[ort.SessionOptions], None]], ort.InferenceSession]
"""A session on a graph, whose weights' locations are relative to a folder, with options that are changed first."""


class OptimizedGraph:
    """A graph's place in the cache.

    Args:
        cache: the folder of all entries.
        source: the graph's file.
        graph: its content, weights' locations relative to `weights_folder`.
        content: the same as it is in a file.
        weights_folder: that holds all of its weight files, none of them behind a link.
        entries: of the session's configuration.
    """

    def __init__(
        self,
        cache: Path,
        source: Path,
        graph: Model,
        content: bytes,
        weights_folder: Path,
        entries: Mapping[str, str],
    ) -> None:
        source, self.content, self.weights_folder = source.resolve(), content, weights_folder.resolve()
        self._tensors = {tensor.name: _external(tensor) for tensor in graph.graph.initializer}
        self._files = sorted({self.weights_folder / each["location"] for each in self._tensors.values() if each})
        size_bytes = sum(int(each["length"]) for each in self._tensors.values() if each)
        self.entry = Entry(cache, source, digest(str(source)), self._key(entries), size_bytes)
        self.root = Path(os.path.commonpath([self.entry.folder, *(file.parent for file in self._files)]))

    def open(self, create: Create) -> ort.InferenceSession:
        """A session on what is kept; if nothing is, on the graph itself, and what it has optimized is kept.

        Raises:
            Exception: what `create` raises on the graph itself. That nothing can be kept is no error.
        """
        if self.entry.is_kept():
            try:
                kept = read_regular_bytes(self.entry.folder / _GRAPH, GRAPH_LIMIT_BYTES)
                return create(kept, self.root, _as_it_is)
            except Exception as error:  # ONNX Runtime's classes share no base
                self.entry.discard(error)
        session = None
        with self.entry.scratch() as scratch:
            if scratch is not None:
                try:
                    session = create(self.content, self.weights_folder, partial(_saving, scratch=scratch))
                    self._drop_unchanged(scratch)
                    self.entry.keep(scratch)
                except Exception as error:  # a disk that is full, as ONNX Runtime or Python says it
                    self.entry.not_kept(error)
        return session or create(self.content, self.weights_folder, lambda _: None)

    def _drop_unchanged(self, scratch: Path) -> None:
        """Write what a session has saved anew, without the weights that are the same as in the bundle."""
        model = Model(read_regular_bytes(scratch / _GRAPH, GRAPH_LIMIT_BYTES))
        saved, packed = scratch / _WEIGHTS, scratch / "packed"
        with packed.open("wb") as out:
            for tensor in model.graph.initializer:
                if not (now := _external(tensor)):
                    continue
                before, here = self._tensors.get(tensor.name), _mapped(saved, now)
                file = self.weights_folder / before["location"] if before else saved
                if before and _equal(_mapped(file, before), here):
                    place = {"location": _below(self.root, file), "offset": before["offset"]}
                else:
                    out.write(bytes(-out.tell() % _PAGE_BYTES))
                    place = {"location": _below(self.root, self.entry.folder / _WEIGHTS), "offset": str(out.tell())}
                    out.write(here.data)
                for entry in tensor.external_data:
                    entry.value = place.get(entry.key, entry.value)
        _put_largest_first(model.graph)
        packed.replace(saved)
        (scratch / _GRAPH).write_bytes(model.SerializeToString())

    def _key(self, entries: Mapping[str, str]) -> str:
        build = ort.__version__, ort.get_build_info(), _processor()
        content = hashlib.sha256(self.content).hexdigest()
        entries = {name: value for name, value in entries.items() if name not in CHANGE_NO_RESULT}
        return digest(json.dumps([_FORMAT, build, sorted(entries.items()), file_states(self._files), content]))


def worth_keeping(model: Model) -> bool:
    """Whether a graph has so many 4-bit weights that preparing them takes long, and the user lets them be kept."""
    return four_bit_bytes(model) >= LEAST_BYTES and not is_off()


def _saving(options: ort.SessionOptions, scratch: Path) -> None:
    options.optimized_model_filepath = str(scratch / _GRAPH)
    for name, value in _SAVED.items():
        options.add_session_config_entry(name, value)


def _as_it_is(options: ort.SessionOptions) -> None:
    """What is optimized already is not optimized again."""
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL


def _put_largest_first(graph: Graph) -> None:
    """Order nodes by the sizes of their weights, those of the same size as they were. So a node may be before what it
    reads, which ONNX forbids and ONNX Runtime takes: it finds an order to compute them in where it opens the graph."""
    sizes = {tensor.name: int(place["length"]) for tensor in graph.initializer if (place := _external(tensor))}
    graph.set_nodes(sorted(graph.node, key=lambda node: -max((sizes.get(name, 0) for name in node.input), default=0)))


def _external(tensor: Tensor) -> dict[str, str]:
    """Location, offset and length of a tensor; nothing if it is in the graph's file."""
    found = {entry.key: entry.value for entry in tensor.external_data}
    return {"offset": "0", **found} if found else {}


def _mapped(file: Path, place: Mapping[str, str]) -> np.ndarray:
    return np.memmap(file, np.uint8, "r", int(place["offset"]), (int(place["length"]),))


def _equal(a: np.ndarray, b: np.ndarray) -> bool:
    pieces = range(0, len(a), _PIECE_BYTES)
    return len(a) == len(b) and all(np.array_equal(a[i : i + _PIECE_BYTES], b[i : i + _PIECE_BYTES]) for i in pieces)


def _below(root: Path, file: Path) -> str:
    return file.relative_to(root).as_posix()


def _processor() -> str:
    """Model and instruction sets of the CPU, as far as the system says."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    described = {line for line in lines if line.startswith(("model name", "flags", "Features"))}
    return f"{platform.machine()} {platform.processor()} {sorted(described)}"
