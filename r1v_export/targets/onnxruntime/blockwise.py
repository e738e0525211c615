"""An ONNX Runtime engine of which one block is held at a time: slices of its graphs, for the parity gate.

A slice has the nodes and initializers between two values of a graph, as they are there, and refers to the same weights,
so that ONNX Runtime loads and computes those of one block. Shape letters: T tiles, S new tokens, E hidden size, V
vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
from onnx_ir.convenience import extract

from r1v_export import contract
from r1v_export.config import Device
from r1v_export.errors import BundleError
from r1v_export.model_spec import ModelSpec
from r1v_export.targets.onnxruntime.library import ort
from r1v_export.targets.onnxruntime.runtime.cache import CacheBuffer
from r1v_export.targets.onnxruntime.runtime.engine import BoundRun, cache_dtype, in_tile_groups
from r1v_export.targets.onnxruntime.runtime.run import ELEMENT_TYPES, run_graph
from r1v_export.targets.onnxruntime.runtime.session import open_session

if TYPE_CHECKING:
    from r1v_export.contract import Embed, OpenCache, Run, RunWithCache


class OnnxRuntimeBlocks:
    """A `contract.BlockwiseEngine` over a bundle's four graphs, or over those of them that are asked for.

    Args:
        folder: with `vision.onnx` and so on.
        weights_root: what the graphs' weight locations are relative to.
        spec: the model.
        device: "cpu" or "cuda".
    """

    name = "onnxruntime"

    def __init__(self, folder: Path, weights_root: Path, spec: ModelSpec, device: Device) -> None:
        self.folder, self.weights_root, self.device = folder, weights_root, device
        self.sizes, self.vision_layers = spec.sizes, spec.vision.num_layers
        self._graph = cache(self._load)

    def vision_embeddings(self) -> Run:
        return self._tiles(contract.PIXEL_VALUES, contract.VISION_EMBEDDINGS)

    def vision_block(self, layer: int) -> Run:
        before = contract.vision_block(layer - 1) if layer else contract.VISION_EMBEDDINGS
        return self._tiles(before, contract.vision_block(layer))

    def vision_features(self) -> Run:
        return self._tiles(contract.vision_block(self.vision_layers - 1), contract.VISION_FEATURES)

    def projector(self) -> Run:
        session = self._open(contract.PROJECTOR, [contract.VISION_FEATURES], [contract.IMAGE_EMBEDS])
        return lambda features_TNE: _run(contract.PROJECTOR, session, features_TNE)

    def embed(self) -> Embed:
        inputs = [contract.INPUT_IDS, contract.IMAGE_EMBEDS]
        session = self._open(contract.EMBED, inputs, [contract.INPUTS_EMBEDS])
        return lambda ids_1S, images_NE: _run(contract.EMBED, session, ids_1S, images_NE)

    def decoder_layer(self, layer: int) -> OpenCache:
        before = contract.decoder_layer(layer - 1) if layer else contract.INPUTS_EMBEDS
        pairs = contract.cache_pairs(self.sizes.layers)[2 * layer : 2 * layer + 2]
        # The last layer computes hidden states of the tokens whose logits are wanted: here, of all.
        places = [contract.POSITION_IDS, contract.CACHE_WRITE_INDEX, contract.CACHE_LENGTH, contract.LOGITS_INDEX]
        after = contract.decoder_layer(layer)
        inputs, outputs = [before, *places, *(past for past, _ in pairs)], [after, *(present for _, present in pairs)]
        session = self._open(contract.DECODER, inputs, outputs)
        return lambda capacity: self._row(session, pairs, before, after, capacity)

    def head(self) -> Run:
        before = contract.decoder_layer(self.sizes.layers - 1)
        # A head in 16 bits is widened to float32 on a CPU. Of a large vocabulary it is the largest block: not twice.
        prepack = self._graph(contract.DECODER).graph.inputs[0].dtype != ir.DataType.FLOAT16
        # Decoders of earlier versions take the tokens in front of the head, not inside of the last layer.
        session = self._open(contract.DECODER, [before, contract.LOGITS_INDEX], [contract.LOGITS], prepack)

        def run(hidden_RE: np.ndarray) -> np.ndarray:
            rows_1R = np.arange(len(hidden_RE), dtype=np.int64)[None]
            logits_RV: np.ndarray = _run(contract.DECODER, session, hidden_RE[None], rows_1R)[0]
            return logits_RV

        return run

    def _tiles(self, before: str, after: str) -> Run:
        session = self._open(contract.VISION, [before], [after])
        return lambda x: in_tile_groups(lambda tiles: _run(contract.VISION, session, tiles), x, self.sizes, self.device)

    def _row(
        self, session: ort.InferenceSession, pairs: Sequence[tuple[str, str]], before: str, after: str, capacity: int
    ) -> RunWithCache:
        """Compute one sequence with a cache of its own, updated in place."""
        sizes, dtype = self.sizes, ELEMENT_TYPES[session.get_inputs()[0].type]
        shape, cached = (1, sizes.kv_heads, capacity, sizes.head_dim), cache_dtype(session, pairs[0][0])
        buffers = [ort.OrtValue.ortvalue_from_numpy(np.zeros(shape, cached), self.device) for _ in pairs]
        kept = [
            CacheBuffer(*pair, shape, buffer.data_ptr(), cached) for pair, buffer in zip(pairs, buffers, strict=True)
        ]

        def run(hidden_1SE: np.ndarray, start: int) -> np.ndarray:
            assert buffers, "what is bound by its address is kept here"
            seq = hidden_1SE.shape[1]
            inputs = {
                before: hidden_1SE,
                contract.POSITION_IDS: np.arange(start, start + seq, dtype=np.int64)[None],
                contract.CACHE_WRITE_INDEX: np.array([start], dtype=np.int64),
                contract.CACHE_LENGTH: np.array([start + seq], dtype=np.int64),
                contract.LOGITS_INDEX: np.arange(seq, dtype=np.int64)[None],
            }
            bound = {name: np.zeros(array.shape, array.dtype) for name, array in inputs.items()}
            bound[before], output = (np.zeros(hidden_1SE.shape, dtype) for _ in range(2))
            return BoundRun(session, self.device, bound, (after, output), kept).run(*inputs.values())

        return run

    def _open(
        self, graph: str, inputs: Sequence[str], outputs: Sequence[str], prepack: bool = True
    ) -> ort.InferenceSession:
        model = slice_graph(self._graph(graph), inputs, outputs, self.folder / f"{graph}.onnx")
        return open_session(model, self.weights_root, self.device, prepack=prepack)

    def _load(self, graph: str) -> ir.Model:
        path = self.folder / f"{graph}.onnx"
        try:
            return ir.load(path)
        except Exception as error:  # protobuf's own, and the file system's
            raise BundleError(
                "An engine cannot be read.", where=path, found=error, fix="build the bundle again"
            ) from error


def slice_graph(model: ir.Model, inputs: Sequence[str], outputs: Sequence[str], where: object) -> bytes:
    """An ONNX file with what of a model computes some of its values from others; weights are not read.

    Args:
        inputs: names of values; those that the outputs do not need stay inputs.
        where: for errors.

    Raises:
        BundleError: the graph has no value of a name, or its outputs need more than these inputs.
    """
    try:
        graph = extract(model.graph, inputs, outputs)
    except ValueError as error:
        raise BundleError(
            "A graph does not show where its blocks begin and end.",
            where=where,
            expected=", ".join([*inputs, *outputs]),
            found=error,
            fix="build the bundle again with this version; or `--gate whole`, which needs more memory",
        ) from error
    graph.opset_imports.update(model.graph.opset_imports)
    part = ir.Model(graph, ir_version=model.ir_version, functions=list(model.functions.values()))
    part.metadata_props.update(model.metadata_props)
    data: bytes = ir.to_proto(part).SerializeToString()
    return data


def _run(graph: str, session: ort.InferenceSession, *arrays: np.ndarray) -> np.ndarray:
    (result,) = run_graph(graph, session, *arrays)
    return result.astype(np.float32, copy=False)
