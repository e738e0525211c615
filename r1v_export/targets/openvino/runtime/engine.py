"""The contract's engine on graphs that OpenVINO compiled."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property, partial
from itertools import count, takewhile
from pathlib import Path
from typing import TypeAlias

import numpy as np

from r1v_export import contract
from r1v_export.config import ImageProducts
from r1v_export.contract import CPU_PREFILL_CHUNK, CacheLimits, PrefillLimits, Sizes
from r1v_export.errors import CapabilityError, R1VError
from r1v_export.log_event import log_event
from r1v_export.opening import Begun, Opening
from r1v_export.targets.openvino.boundary import PROMPT_TOKENS
from r1v_export.targets.openvino.engine_file import read_engine_file
from r1v_export.targets.openvino.library import ov
from r1v_export.targets.openvino.runtime.decoder import OpenVinoDecoder
from r1v_export.targets.openvino.runtime.model import (
    Compiled,
    attention_of,
    attention_of_prompts,
    compile_graph,
    compile_head,
    full_rows,
)
from r1v_export.targets.openvino.runtime.paged_attention import Attention
from r1v_export.targets.openvino.runtime.paged_decoder import DecoderGraphs, PagedDecoder
from r1v_export.targets.openvino.runtime.run import naming
from r1v_export.weights_memory import Settling

_LOG = logging.getLogger(__name__)

TOKENS_WITH_OTHERS = 96
"""Prompt tokens in a step that decodes as well. With 160 the others wait 1.7 times as long for their next token (p95),
and 16 clients get fewer tokens a second; with 64 and 80 they get fewer, too (two cores, 0.5B)."""
TILES_WITH_OTHERS = 256
"""The same where tiles are multiplied, which takes 1.7 times as long as 128 of them. With 384 the others wait 1.2 times
as long (p95), and 16 clients get 1.1 times as many tokens a second."""

Graphs: TypeAlias = DecoderGraphs | Compiled
"""Of a decoder over a pool of blocks, or the one of a decoder with another cache."""


class OpenVinoEngine:
    """Runs a bundle's four graphs. A graph is compiled when it is first needed, the decoder's before if it is begun.

    Args:
        folder: with `vision.onnx` and so on, and `engine.json`.
        bundle: what the weights' paths are relative to.
        sizes: of the model.
        threads: that one operator may use; `cpus.thread_count()` if None.
        image_products: int8 rounds float32 weights of vision and projector, and their inputs, to 8 bits.
        keep: keep on disk what many weights are rounded to, for the next process, see `kept_weights`.
    """

    name = "openvino"

    def __init__(
        self,
        folder: Path,
        bundle: Path,
        sizes: Sizes,
        threads: int | None = None,
        image_products: ImageProducts = "bfloat16",
        *,
        keep: bool = False,
    ) -> None:
        self.folder, self.bundle, self.sizes, self.threads = folder, bundle, sizes, threads
        self._image_products, self.keep = image_products, keep
        self._file = read_engine_file(folder)
        self._opening: Opening[Graphs] | None = None
        self._first: DecoderGraphs | None = None
        """Those that were opened first, where prompts have a graph of their own: it and the head are lent to others."""
        self._serves = False
        self._settling = self._new_settling()

    def vision(self, pixel_values: np.ndarray) -> np.ndarray:
        # One by one tiles take as long as together, and a part of the memory; the bits are the same.
        starts = range(max(1, len(pixel_values)))  # without a tile the graph says the shape of the result
        return np.concatenate([self._vision.run(pixel_values[start : start + 1])[0] for start in starts])

    def vision_blocks(self, pixel_values: np.ndarray) -> Iterator[np.ndarray]:
        """Output of each ViT block in turn, [tiles, positions, vit_hidden], for parity. Compiles the graph again.

        Raises:
            CapabilityError: the graph does not show its blocks.
        """
        yield from self._vision_blocks.run(pixel_values)[1:]

    def projector(self, vision_features: np.ndarray) -> np.ndarray:
        return self._projector.run(vision_features)[0]

    def embed(self, input_ids: np.ndarray, image_embeds: np.ndarray) -> np.ndarray:
        return self._embed.run(input_ids, image_embeds)[0]

    def begin_decoder(self, alone: bool) -> None:
        """Begin to compile the decoder's graphs in a thread, and to pack their weights in another one behind it, if
        that was not done yet. Where the process is alone with its next step, nothing: it may fork, and OpenVINO, once
        in use, does not work in the forked process."""
        self._serves = self._serves or not alone
        if not alone and self._opening is None and "_decoder_graphs" not in vars(self):
            self._opening = Opening(self._open_and_pack_decoder_graphs)

    def decoder(self, batch: int, capacity: int) -> OpenVinoDecoder | PagedDecoder:
        return self._over(self._decoder_graphs, batch, capacity, self._settling)

    def one_sequence_decoder(self, capacity: int) -> OpenVinoDecoder | PagedDecoder:
        """A decoder for one sequence. Where prompts have a graph of their own, steps have another one, for one token;
        a server has the graph for any tokens anyway, and no third copy of the weights."""
        if self._serves or self.attention_of_prompts is None:
            return self.decoder(1, capacity)
        return self._over(self._one_sequence_graphs, 1, capacity, self._one_sequence_settling)

    def cache_limits(self) -> CacheLimits:
        sizes, attention = self.sizes, self.attention
        value_bytes = getattr(ov.Type, attention.pools if attention else "f32").size
        slot_bytes = 2 * sizes.layers * sizes.kv_heads * sizes.head_dim * value_bytes
        return CacheLimits(slot_bytes, prefill=self._prefill_limits(attention))

    def _prefill_limits(self, attention: Attention | None) -> PrefillLimits:
        if attention is None:
            return PrefillLimits.of_device("cpu")
        prompts = self.attention_of_prompts
        if full_rows(prompts or attention) == 1:
            return PrefillLimits(CPU_PREFILL_CHUNK, together=TOKENS_WITH_OTHERS)
        limits = PrefillLimits(chunk=TILES_WITH_OTHERS, together=TILES_WITH_OTHERS)
        return replace(limits, least=PROMPT_TOKENS, short_tokens=TOKENS_WITH_OTHERS) if prompts else limits

    @cached_property
    def attention(self) -> Attention | None:
        """How it attends where it decodes over a pool of blocks; None where it does not."""
        return attention_of(self._file) if self._file.paged else None

    @cached_property
    def attention_of_prompts(self) -> Attention | None:
        """How its graph for prompts does; None without one."""
        return attention_of_prompts(self._file)

    @cached_property
    def _vision(self) -> Graph:
        return self._open(contract.VISION)

    @cached_property
    def _vision_blocks(self) -> Graph:
        model = ov.Core().read_model(self.folder / f"{contract.VISION}.onnx")
        there = {name for node in model.get_ops() for output in node.outputs() for name in output.get_names()}
        names = list(takewhile(there.__contains__, map(contract.vision_block, count())))
        if not names:
            raise CapabilityError(
                "The vision graph does not show its ViT blocks.",
                where=self.folder,
                expected=contract.vision_block(0),
                fix="compare without blocks",
            )
        return self._open(contract.VISION, names)

    @cached_property
    def _projector(self) -> Graph:
        return self._open(contract.PROJECTOR)

    @cached_property
    def _embed(self) -> Graph:
        return self._open(contract.EMBED)

    @cached_property
    def _decoder_graphs(self) -> Graphs:
        opening, self._opening = self._opening, None  # once: graphs that failed to compile are compiled anew
        if opening and opening.is_here:
            return opening.result()
        if opening:
            self._first = None  # of the process that this one was forked from
        return self._open_decoder_graphs()

    @cached_property
    def _one_sequence_graphs(self) -> Graphs:
        return self._open_decoder_graphs(one_token=True)

    @cached_property
    def _one_sequence_settling(self) -> Settling:
        return self._new_settling()

    def _open_and_pack_decoder_graphs(self, begun: Begun) -> Graphs:
        graphs = self._open_decoder_graphs(begun)
        Opening(partial(self._pack, graphs))
        return graphs

    def _open_decoder_graphs(self, begun: Begun = lambda: None, *, one_token: bool = False) -> Graphs:
        if self.attention is None:
            return self._compile_decoder(None, begun)
        compile_steps = partial(self._compile_decoder, self.attention, begun, one_token=one_token)
        if self._first is not None:
            return self._first._replace(steps=compile_steps(), one_token=one_token)
        prompts = self.attention_of_prompts
        # At the same time: compiling has work for one thread.
        opening = Opening(partial(self._compile_decoder, prompts)) if prompts else None
        steps = compile_steps()
        head = compile_head(steps, self.folder, self._file, self.threads, self.attention)
        pools = getattr(ov.Type, self.attention.pools)
        multiple = full_rows(prompts or self.attention)
        graphs = DecoderGraphs(steps, opening.result() if opening else steps, head, pools, multiple, one_token)
        self._first = graphs if opening else None
        return graphs

    def _pack(self, graphs: Graphs, begun: Begun) -> None:
        """Compute a prompt and a step of zeros: OpenVINO packs weights in a graph's first run. Then the weights' memory
        is settled, and once more at the first answer: images have been encoded and caches are there by then."""
        begun()
        decoder, start = self._over(graphs, 1, PROMPT_TOKENS + 1, self._new_settling()), np.zeros(1, np.int64)
        try:
            for new in (PROMPT_TOKENS, 1):
                embeds, ids = np.zeros((1, new, self.sizes.hidden), np.float32), start[:, None] + np.arange(new)
                decoder.step(embeds, ids, start, start + new, np.array([[new - 1]]))
                start = start + new
        except R1VError as error:  # the first request fails likewise, and says so to whom it concerns
            message = "the decoder's weights are not packed before the first request: %(reason)s"
            log_event(_LOG, logging.WARNING, message, reason=error)

    def _new_settling(self) -> Settling:
        return Settling(self._file.weights_bytes(contract.DECODER))

    def _over(self, graphs: Graphs, batch: int, capacity: int, settling: Settling) -> OpenVinoDecoder | PagedDecoder:
        if isinstance(graphs, Compiled):
            return OpenVinoDecoder(graphs, self.sizes, batch, capacity, settling.begin)
        return PagedDecoder(graphs, self.sizes, batch, capacity, settling.begin)

    def _compile_decoder(
        self, attention: Attention | None, begun: Begun = lambda: None, *, one_token: bool = False
    ) -> Compiled:
        arguments = self.folder, self.bundle, contract.DECODER, self._file, self.threads
        return compile_graph(*arguments, keep=self.keep, attention=attention, one_token=one_token, begun=begun)

    def _open(self, graph: str, outputs: list[str] | None = None) -> Graph:
        int8 = self._image_products == "int8" and graph in contract.IMAGE_GRAPHS
        of_graph = compile_graph(
            self.folder, self.bundle, graph, self._file, self.threads, outputs, int8=int8, keep=self.keep
        )
        return Graph(graph, of_graph)


class Graph:
    """A compiled graph without a cache, for any number of threads, one after the other."""

    def __init__(self, name: str, compiled: Compiled) -> None:
        self.name, self.compiled, self._lock = name, compiled, threading.Lock()
        self._request = compiled.model.create_infer_request()
        self._inputs = [port.any_name for port in compiled.model.inputs]

    def run(self, *arrays: np.ndarray) -> list[np.ndarray]:
        """Every output, for the inputs in order.

        Raises:
            GraphError: OpenVINO fails.
        """
        inputs = {name: np.ascontiguousarray(array) for name, array in zip(self._inputs, arrays, strict=True)}
        with self._lock, self.compiled.weights.packing(), naming(self.name, inputs):
            results = self._request.infer(inputs, share_inputs=True)
            return [results[index] for index in range(len(results))]
