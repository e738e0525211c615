"""The contract's engine on ONNX Runtime sessions."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from r1v_export import contract, weights_memory
from r1v_export.config import Device
from r1v_export.contract import CacheLimits, PrefillLimits, Sizes
from r1v_export.opening import Begun, Opening
from r1v_export.targets.onnxruntime.library import ort
from r1v_export.targets.onnxruntime.runtime.cache import CacheBuffer, open_cache
from r1v_export.targets.onnxruntime.runtime.embedding_table import EmbeddingTable, find_table
from r1v_export.targets.onnxruntime.runtime.run import CACHE_TYPES, ELEMENT_TYPES, naming, refusing_overflow, run_graph
from r1v_export.targets.onnxruntime.runtime.session import open_session
from r1v_export.targets.onnxruntime.runtime.vision_blocks import with_vision_blocks
from r1v_export.targets.onnxruntime.session_options import EMBED_THREADS, STOPS_AT_LENGTH, TOKENS_AT_ONCE

if TYPE_CHECKING:
    from r1v_export.contract import Run


_KEPT_RUNS, _KEPT_TOKENS = 6, 16
"""Runs whose buffers a decoder keeps, and tokens of each of their rows: each has logits of the whole vocabulary."""


class OnnxRuntimeEngine:
    """Runs a bundle's four graphs. A graph is loaded when it is first needed, the decoder's before if it is begun.

    Where there are no rows of images, tokens are looked up in the embed graph's table itself.

    Args:
        folder: with `vision.onnx` and so on.
        weights_root: what the graphs' weight locations are relative to.
        sizes: of the model.
        device: "cpu" or "cuda".
        threads: that one operator may use on the CPU; `cpus.thread_count()` if None.
        gpu: which one of several encodes images; the decoder is on the first.
        keep: keep on disk what is made of many 4-bit weights, for the next process, see `optimized_graphs`.
        positions: of the model; None if not known, see `OnnxRuntimeDecoder`.
    """

    name = "onnxruntime"

    def __init__(
        self,
        folder: Path,
        weights_root: Path,
        sizes: Sizes,
        device: Device = "cpu",
        threads: int | None = None,
        gpu: int = 0,
        keep: bool = False,
        positions: int | None = None,
    ) -> None:
        self.positions = positions
        self.folder, self.weights_root, self.sizes = folder, weights_root, sizes
        self.device, self.threads, self.gpu, self.keep = device, threads, gpu, keep
        self._settling = weights_memory.Settling(0)
        self._opening: Opening[ort.InferenceSession] | None = None

    def vision(self, pixel_values: np.ndarray) -> np.ndarray:
        return in_tile_groups(
            lambda tiles: _run(contract.VISION, self._vision, tiles), pixel_values, self.sizes, self.device
        )

    def vision_blocks(self, pixel_values: np.ndarray) -> Iterator[np.ndarray]:
        """Output of each ViT block in turn, [tiles, positions, vit_hidden], for parity. Loads the vision graph again.

        Raises:
            CapabilityError: the graph was lowered so that blocks are no longer there to see.
        """
        for block in run_graph(contract.VISION, self._vision_blocks, pixel_values)[1:]:
            yield block.astype(np.float32, copy=False)

    def projector(self, vision_features: np.ndarray) -> np.ndarray:
        return _run(contract.PROJECTOR, self._projector, vision_features)

    def embed(self, input_ids: np.ndarray, image_embeds: np.ndarray) -> np.ndarray:
        table = None if len(image_embeds) else self._table
        if table is not None and table.holds(input_ids):
            return table.rows(input_ids)
        return _run(contract.EMBED, self._embed, input_ids, image_embeds)

    def decoder(self, batch: int, capacity: int) -> OnnxRuntimeDecoder:
        session = self._decoder  # before what opening it has noted
        begin = self._settling.begin
        return OnnxRuntimeDecoder(session, self.sizes, batch, capacity, self.device, begin, self.positions)

    def cache_limits(self) -> CacheLimits:
        sizes, dtype = self.sizes, cache_dtype(self._decoder, contract.past_key(0))
        slot_bytes = 2 * sizes.layers * sizes.kv_heads * sizes.head_dim * dtype.itemsize
        return CacheLimits(slot_bytes, prefill=PrefillLimits.of_device(self.device))

    @cached_property
    def _vision(self) -> ort.InferenceSession:
        return self._open(contract.VISION)

    @cached_property
    def _vision_blocks(self) -> ort.InferenceSession:
        model = with_vision_blocks(self.folder / f"{contract.VISION}.onnx")
        return open_session(model, self.weights_root, self.device, self.threads)

    @cached_property
    def _projector(self) -> ort.InferenceSession:
        return self._open(contract.PROJECTOR)

    @cached_property
    def _embed(self) -> ort.InferenceSession:
        # A look-up gains nothing from threads.
        return self._open(contract.EMBED, threads=EMBED_THREADS)

    @cached_property
    def _table(self) -> EmbeddingTable | None:
        return find_table(self.folder / f"{contract.EMBED}.onnx", self.weights_root, self.sizes)

    def begin_decoder(self, alone: bool) -> None:
        """Begin to open the decoder's session in a thread, if that was not done yet; on a GPU nothing."""
        if self.device == "cpu" and self._opening is None and "_decoder" not in vars(self):
            self._opening = Opening(partial(self._open_decoder, alone))

    @cached_property
    def _decoder(self) -> ort.InferenceSession:
        opening, self._opening = self._opening, None  # once: a session that failed to open is opened anew
        return opening.result() if opening and opening.is_here else self._open_decoder()

    def _open_decoder(self, alone: bool = False, begun: Begun | None = None) -> ort.InferenceSession:
        before_bytes = weights_memory.resident_bytes()
        session = self._open(contract.DECODER, alone=alone, begun=begun)
        on_cpu = self.device == "cpu"
        self._settling = weights_memory.Settling(weights_memory.resident_bytes() - before_bytes if on_cpu else 0)
        return session

    def _open(self, graph: str, threads: int | None = None, **options: Any) -> ort.InferenceSession:
        model, threads = self.folder / f"{graph}.onnx", threads or self.threads
        # The decoder's operators are the small ones. Images are encoded at the same time, by operators so large that
        # waiting for the next one without spinning costs nothing.
        spinning = graph == contract.DECODER
        return open_session(model, self.weights_root, self.device, threads, self.gpu, spinning, self.keep, **options)


def in_tile_groups(run: Run, x_T: np.ndarray, sizes: Sizes, device: Device) -> np.ndarray:
    """Compute [tiles, ...] from [tiles, ...], on a CPU a few tiles at a time."""
    if device != "cpu":
        return run(x_T)
    tiles = max(1, TOKENS_AT_ONCE // sizes.tokens_per_tile)
    starts = range(0, max(1, len(x_T)), tiles)
    return np.concatenate([run(x_T[start : start + tiles]) for start in starts])


def _run(graph: str, session: ort.InferenceSession, *arrays: np.ndarray) -> np.ndarray:
    """The single output of a graph, float32, for its inputs in order."""
    (result,) = run_graph(graph, session, *arrays)
    return result.astype(np.float32, copy=False)


class OnnxRuntimeDecoder:
    """The decoder graph with a key-value cache that no step copies.

    Past and present of each layer are bound to one buffer [batch, kv_heads, slots, head_dim], which ONNX Runtime
    updates in place. One new token per row is a single run, bound once for the same rows. Several new tokens (a prompt)
    run row by row, each on its own part of the buffers and without its padding: GroupQueryAttention takes several
    tokens behind a filled cache for one row only, and computing padding would cost more than batching gains.

    Args:
        session: on the decoder graph.
        sizes: of the model.
        batch: rows of the cache.
        capacity: slots of each.
        device: "cpu" or "cuda".
        on_decoding: called before each step of one new token per row.
        positions: of the model: with them, a cache of a graph whose attention stops at each row's length grows without
            being copied.
    """

    def __init__(
        self,
        session: ort.InferenceSession,
        sizes: Sizes,
        batch: int,
        capacity: int,
        device: Device,
        on_decoding: Callable[[], None] = lambda: None,
        positions: int | None = None,
    ) -> None:
        self.session, self.sizes, self.batch, self.capacity, self.device = session, sizes, batch, capacity, device
        self.on_decoding = on_decoding
        self.dtype = ELEMENT_TYPES[session.get_inputs()[0].type]
        cached = cache_dtype(session, contract.past_key(0))
        self.cache = open_cache(sizes, cached, device, batch, capacity, _most_slots(session, positions))
        self._runs: OrderedDict[tuple[int, int, int, int], BoundRun] = OrderedDict()
        """The latest runs with logits of each token, as steps that decode have them, by the arguments of `_bound`."""

    def step(
        self,
        inputs_embeds: np.ndarray,
        position_ids: np.ndarray,
        cache_write_index: np.ndarray,
        cache_length: np.ndarray,
        logits_index: np.ndarray,
        first_row: int = 0,
    ) -> np.ndarray:
        (rows, seq), positions = inputs_embeds.shape[:2], logits_index.shape[1]
        if seq == positions == 1:
            self.on_decoding()
            step = self._bound(first_row, rows, seq, positions)
            logits_B1V = step.run(inputs_embeds, position_ids, cache_write_index, cache_length, logits_index)
            self.cache.settle(first_row, cache_length.tolist())
            return logits_B1V
        logits_BPV = np.empty((rows, positions, self.sizes.vocab), dtype=np.float32)
        for row in range(rows):
            here, seq = slice(row, row + 1), int(logits_index[row].max()) + 1
            logits_BPV[row] = self._bound(first_row + row, rows=1, seq=seq, positions=positions).run(
                inputs_embeds[here, :seq],
                position_ids[here, :seq],
                cache_write_index[here],
                cache_write_index[here] + seq,
                logits_index[here],
            )
            self.cache.settle(first_row + row, [int(cache_write_index[row]) + seq])
        return logits_BPV

    def copy_row(self, source: int, target: int, length: int) -> None:
        self.cache.copy_row(source, target, length)

    def swap_rows(self, a: int, b: int, length: int) -> None:
        self.cache.swap_rows(a, b, length)

    def resize(self, batch: int, capacity: int, lengths: np.ndarray) -> None:
        self.batch, self.capacity = batch, capacity
        self._runs.clear()
        self.cache.resize(batch, capacity, lengths.tolist())

    def _bound(self, first_row: int, rows: int, seq: int, positions: int) -> BoundRun:
        """A run with fixed shapes; those that decode are kept, as the next ones are mostly the same."""
        key = first_row, rows, seq, positions
        if seq != positions or seq > _KEPT_TOKENS:
            return self._bind(*key)
        run = self._runs.pop(key, None) or self._bind(*key)
        self._runs[key] = run
        while len(self._runs) > _KEPT_RUNS:
            self._runs.popitem(last=False)
        return run

    def _bind(self, first_row: int, rows: int, seq: int, positions: int) -> BoundRun:
        """A run with fixed shapes, its inputs in the contract's order.

        Args:
            first_row, rows: the part of the cache's batch that takes part.
            seq: new tokens per row.
            positions: of them whose logits are computed, per row.
        """
        sizes = self.sizes
        inputs = {
            contract.INPUTS_EMBEDS: np.zeros((rows, seq, sizes.hidden), self.dtype),
            contract.POSITION_IDS: np.zeros((rows, seq), np.int64),
            contract.CACHE_WRITE_INDEX: np.zeros(rows, np.int64),
            contract.CACHE_LENGTH: np.zeros(rows, np.int64),
            contract.LOGITS_INDEX: np.zeros((rows, positions), np.int64),
        }
        logits_BPV = np.zeros((rows, positions, sizes.vocab), self.dtype)
        cache = self.cache.buffers(first_row, rows)
        return BoundRun(self.session, self.device, inputs, (contract.LOGITS, logits_BPV), cache)


def cache_dtype(session: ort.InferenceSession, past: str) -> np.dtype[Any]:
    """What a decoder graph, or a slice of it, has the tensor `past` of its cache in."""
    return next(CACHE_TYPES[value.type] for value in session.get_inputs() if value.name == past)


def _most_slots(session: ort.InferenceSession, positions: int | None) -> int | None:
    """Slots to have addresses for: as many as the model has positions, if unused ones take no time."""
    stops_at_length = session.get_modelmeta().custom_metadata_map.get(STOPS_AT_LENGTH) == "1"
    return positions if stops_at_length else None


class BoundRun:
    """A run of the decoder graph or a slice of it, its buffers bound once.

    Args:
        inputs: a buffer of each input that is no cache, in order.
        output: the name of the output that is no cache, and its buffer.
        cache: updated in place.
    """

    def __init__(
        self,
        session: ort.InferenceSession,
        device: Device,
        inputs: Mapping[str, np.ndarray],
        output: tuple[str, np.ndarray],
        cache: Sequence[CacheBuffer],
    ) -> None:
        self._session, self._binding, self._on_cpu = session, session.io_binding(), device == "cpu"
        (name, self._output), self._inputs = output, inputs
        self._values = [ort.OrtValue.ortvalue_from_numpy(array) for array in inputs.values()]
        self._output_value = ort.OrtValue.ortvalue_from_numpy(self._output)
        self._bind_inputs()
        self._binding.bind_ortvalue_output(name, self._output_value)
        for past, present, shape, address, dtype in cache:
            memory = (device, 0, dtype, shape, address)
            self._binding.bind_input(past, *memory)
            self._binding.bind_output(present, *memory)

    def run(self, *arrays: np.ndarray) -> np.ndarray:
        """The output, float32, for the inputs in order."""
        for (name, buffer), array in zip(self._inputs.items(), arrays, strict=True):
            with refusing_overflow(contract.DECODER, name, buffer.dtype):
                np.copyto(buffer, array, casting="same_kind")
        with naming(contract.DECODER, self._inputs):
            if not self._on_cpu:
                self._bind_inputs()  # Binding is what copies to a GPU; on the CPU the buffers themselves are read.
            self._session.run_with_iobinding(self._binding)
        return self._output.astype(np.float32)

    def _bind_inputs(self) -> None:
        for name, value in zip(self._inputs, self._values, strict=True):
            self._binding.bind_ortvalue_input(name, value)
