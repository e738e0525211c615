"""What a streamed parity gate holds at once, a sum for each of its parts: the most of them is what it takes.

A part is one block of one engine: its weights, what opening them or computing with them takes in addition, and what
samples bring from block to block. Texts, which rate an imported checkpoint, go through the blocks again at the end.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from r1v_export.checkpoint.names import EMBED_TOKENS, LM_HEAD, expected_tensors
from r1v_export.config import ParityConfig
from r1v_export.contract import PREFILL_CHUNK
from r1v_export.model_spec import ModelSpec
from r1v_export.parity.schema import FEWEST_TEXT_TOKENS
from r1v_export.parity.streamed import ACTIVATION_MEMORY_BYTES
from r1v_export.parity.texts import ROWS_AT_ONCE
from r1v_export.pipeline.estimate import GENERATED_TILES, positions, question_tokens
from r1v_export.pipeline.held_weights import HeldWeights
from r1v_export.quantization.recipe import Imported, Scheme

Engine = Literal["arithmetic", "quantization", "engine"]
"""Whose block: a reference, by the gate that it is for (the fake-quantized model and the original), or the target's."""

PROCESS_BYTES = 280 << 20
"""Of the process itself, as benchmarks/gate_memory.py measures it."""
PACKED_BYTES = 0.5 + 4 / 128
"""Of a 4-bit weight with its share of a float32 scale."""
ROUNDED_BYTES = 1 + 4 / 128
"""The same of an 8-bit one."""
_FLOAT_BYTES, _HALF_BYTES, _DOUBLE_BYTES = 4, 2, 8
_UNPACKING_BYTES = 3.5
"""Of a value of a linear whose quantized values are unpacked next to its float32 weight."""
_TEXTS = 4
"""As many as have `FEWEST_TEXT_TOKENS` tokens of replies, roughly."""
_LAYER = re.compile(r"(.*)\.layers\.\d+\.")
_OF_DECODER = ("decoder_layer", "head")
_BLOCKS = {"vision_model.encoder": "vision_block", "language_model.model": "decoder_layer"}


@dataclass(frozen=True)
class Block:
    """What a block is made of; the largest of its kind.

    Attributes:
        values: of all its weights.
        matrix: of its largest weight.
        quantized: of those that are quantized.
        largest: of its largest quantized linear.
        fp8: of its largest linear in FP8.
        packed: of those that 4 bits hold.
    """

    values: int = 0
    matrix: int = 0
    quantized: int = 0
    largest: int = 0
    fp8: int = 0
    packed: int = 0


@dataclass(frozen=True)
class StreamedMemory:
    """Bytes in the machine's memory; a GPU's own are not counted.

    Attributes:
        schemes: of every quantized linear.
        held: how the engine holds its weights.
    """

    spec: ModelSpec
    schemes: Mapping[str, Scheme]
    parity: ParityConfig
    held: HeldWeights

    @property
    def imported(self) -> bool:
        """Whether the checkpoint was quantized already: it has one reference, and texts rate it."""
        return any(isinstance(scheme.weights, Imported) for scheme in self.schemes.values())

    @property
    def peak(self) -> int:
        """The most of all parts."""
        return max(self.parts.values())

    @cached_property
    def parts(self) -> dict[str, int]:
        """What is held while a part is computed, in bytes: `decoder_layer/engine`, `head/arithmetic`, `texts`."""
        parts = {
            f"{name}/{engine}": PROCESS_BYTES + self._kept(name) + self._block_bytes(name, engine, self._within(name))
            for name in self.blocks
            for engine in self._engines_of(name)
        }
        return parts | ({"texts": PROCESS_BYTES + self._texts()} if self.imported else {})

    @property
    def _references(self) -> tuple[Engine, ...]:
        if self.held.own_weights:
            return ("quantization",)
        quantized = bool(self.schemes) and not self.imported
        return ("arithmetic", "quantization") if quantized else ("arithmetic",)

    @property
    def _encoding(self) -> tuple[Engine, ...]:
        """The references that have a tower, projector and embeddings of their own."""
        decoder_alone = all(linear.startswith("language_model.") for linear in self.schemes)
        return self._references[:1] if decoder_alone else self._references

    def _engines_of(self, name: str) -> tuple[Engine, ...]:
        """All that compute the blocks of a name."""
        return (*(self._references if name in _OF_DECODER else self._encoding), "engine")

    @cached_property
    def blocks(self) -> dict[str, Block]:
        """By name; an embedding table, of which rows are taken from the file, is none."""
        found: dict[str, Block] = {}
        for name, block in _blocks(self.spec, self.schemes):
            largest = found.get(name)
            found[name] = block if largest is None or block.values > largest.values else largest
        return found

    def _block_bytes(self, name: str, engine: Engine, within: int) -> int:
        """A block's weights with what opening it takes in addition, or with what computing in it does."""
        block = self.blocks[name]
        if engine == "engine":
            return self._engine_bytes(name, block, within)
        opening = 0 if engine == "quantization" else block.largest
        return _FLOAT_BYTES * block.values + max(opening, within)

    def _engine_bytes(self, name: str, block: Block, within: int) -> int:
        """The same of the target's engine."""
        held = self.held
        if not held.in_memory:
            return within
        weights = _FLOAT_BYTES * block.values
        if name == "head" and held.rounded_head and not block.quantized:
            weights = opening = round(ROUNDED_BYTES * block.values)
        elif held.is_graph(name):
            weights -= round((_FLOAT_BYTES - PACKED_BYTES) * block.packed) if held.packed else 0
            opening = self._widening(name, block)
        else:
            opening = block.quantized if held.unpacks_whole_blocks else round(_UNPACKING_BYTES * block.largest)
        return weights + max(opening, within)

    def _widening(self, name: str, block: Block) -> int:
        """What ONNX Runtime holds next to float32 weights while opening a graph: of what it widens to them, the layouts
        of its kernels, one weight after the other, and weights of 16 bits as they were. Others are in a file."""
        if not self.held.half_precision:
            return _FLOAT_BYTES * block.fp8
        # `OnnxRuntimeBlocks` opens a head of 16 bits without layouts.
        return _HALF_BYTES * block.values + (0 if name == "head" else _FLOAT_BYTES * block.matrix)

    @property
    def spilled(self) -> int:
        """Bytes of the disk that activations take which memory does not hold. One of them may not fit where there is
        room for nearly all of it."""
        most = 0
        for name in self.blocks:
            kept, one = self._brought(name)
            if name == "projector":  # the engine's outputs join the features that are yet to be projected
                features, _ = self._brought("vision_block")
                kept += features
            most = max(most, kept - ACTIVATION_MEMORY_BYTES + one if kept > ACTIVATION_MEMORY_BYTES else 0)
        return most

    def _kept(self, name: str) -> int:
        """What memory holds of what samples bring to a block."""
        return min(ACTIVATION_MEMORY_BYTES, self._brought(name)[0])

    def _brought(self, name: str) -> tuple[int, int]:
        """Bytes that samples bring to a block of a name and away from it, of every engine, and one sample of one."""
        language, questions = self.spec.language, self.parity.streamed_questions
        # Of the references, and of the engine on the inputs of each encoding one and on its own.
        encoders = len(self._encoding) + 1
        decoders = encoders + len(self._references)
        if name.startswith("vision"):
            chains, floats = encoders, GENERATED_TILES * positions(self.spec) * self.spec.vision.hidden_size
        elif name == "head":
            chains, floats = decoders, self._logit_rows * language.vocab_size
        else:
            chains, floats = decoders, question_tokens(self.spec) * language.hidden_size
        return _FLOAT_BYTES * chains * questions * floats, _FLOAT_BYTES * floats

    @property
    def _logit_rows(self) -> int:
        return 1 + self.parity.streamed_reply_tokens

    def _within(self, name: str, tokens: int | None = None) -> int:
        """What one sample takes within a block."""
        if name == "vision_embeddings":
            return 3 * _FLOAT_BYTES * GENERATED_TILES * positions(self.spec) * self.spec.vision.hidden_size
        if name == "vision_block":
            return self._tower()
        if name == "decoder_layer":
            return self._layer(question_tokens(self.spec) if tokens is None else tokens)
        if name == "head":
            return _FLOAT_BYTES * self._logit_rows * self.spec.language.vocab_size
        return 2 * _FLOAT_BYTES * GENERATED_TILES * self.spec.tokens_per_tile * self.spec.language.hidden_size

    def _tower(self) -> int:
        """A sample's tiles behind a ViT block, one by one and then together, and a few within it. ONNX Runtime holds
        the attention scores of a tile."""
        from r1v_export.reference.blockwise import TILES_AT_ONCE  # imports torch

        vision, rows = self.spec.vision, positions(self.spec)
        tile = rows * (4 * vision.hidden_size + 2 * vision.intermediate_size)
        scores = vision.num_heads * rows**2
        behind = 2 * GENERATED_TILES * rows * vision.hidden_size
        return _FLOAT_BYTES * (behind + max(TILES_AT_ONCE * tile, tile + scores))

    def _layer(self, tokens: int) -> int:
        """A prompt's part within a decoder layer, with attention scores and keys and values before and behind."""
        language, chunk = self.spec.language, min(tokens, PREFILL_CHUNK)
        features = chunk * (3 * language.intermediate_size + 6 * language.hidden_size)
        scores = chunk * language.num_heads * tokens
        cache = 4 * language.num_kv_heads * language.head_dim * tokens
        return _FLOAT_BYTES * (features + scores + cache + tokens * language.hidden_size)

    def _texts(self) -> int:
        """The most of a text's walk through the reference: next to the head, predictions are rated in float64."""
        language, tokens = self.spec.language, FEWEST_TEXT_TOKENS + self.spec.tokens_per_tile
        rated = ROWS_AT_ONCE * language.vocab_size * (_FLOAT_BYTES + 4 * _DOUBLE_BYTES)
        wider = max(tokens * language.hidden_size, positions(self.spec) * self.spec.vision.hidden_size)
        kept = _FLOAT_BYTES * _TEXTS * wider
        return kept + max(
            self._block_bytes(name, "arithmetic", rated if name == "head" else self._within(name, tokens))
            for name in self.blocks
        )


def _blocks(spec: ModelSpec, schemes: Mapping[str, Scheme]) -> Iterator[tuple[str, Block]]:
    """Every block of a model, with its name."""
    counts = {name: math.prod(shape) for name, shape in expected_tensors(spec).items() if name != EMBED_TOKENS}
    if spec.language.tie_word_embeddings:
        counts[LM_HEAD] = math.prod(expected_tensors(spec)[EMBED_TOKENS])
    blocks: dict[str, dict[str, int]] = {}
    for name, count in counts.items():
        layer = _LAYER.match(name)
        blocks.setdefault(layer[0] if layer else _outside(name), {})[name] = count
    for block, tensors in blocks.items():
        layer = _LAYER.match(block)
        names = [n for n in tensors if n.removesuffix(".weight") in schemes]
        types = {n: schemes[n.removesuffix(".weight")].weights.type for n in names}
        yield (
            _BLOCKS[layer[1]] if layer else block,
            Block(
                values=sum(tensors.values()),
                matrix=max(tensors.values()),
                quantized=sum(tensors[n] for n in types),
                largest=max((tensors[n] for n in types), default=0),
                fp8=max((tensors[n] for n, kind in types.items() if kind == "fp8"), default=0),
                packed=sum(tensors[n] for n, kind in types.items() if "4" in kind),
            ),
        )


def _outside(name: str) -> str:
    if name.startswith("mlp1."):
        return "projector"
    return "head" if name.startswith("language_model.") else "vision_embeddings"
