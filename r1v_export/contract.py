"""The contract: every tensor at a graph boundary, once.

ONNX input and output names, engine profiles, runner bindings and server configuration are generated from these
tables or checked against them. Nothing else in the package spells a boundary tensor's name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    import numpy as np

    Run = Callable[[np.ndarray], np.ndarray]
    """Computes a block: float32 in and out, whatever the engine computes in."""

    RunWithCache = Callable[[np.ndarray, int], np.ndarray]
    """Computes a decoder layer for one sequence: hidden [1, seq, hidden] of new tokens, and the number of tokens before
    them, which its cache holds; hidden [1, seq, hidden]."""

    OpenCache = Callable[[int], RunWithCache]
    """Opens a decoder layer's empty cache of so many slots, for one sequence."""

    Embed = Callable[[np.ndarray, np.ndarray], np.ndarray]
    """As `Engine.embed`."""

# Boundary tensors.
PIXEL_VALUES = "pixel_values"
VISION_FEATURES = "vision_features"
IMAGE_EMBEDS = "image_embeds"
INPUT_IDS = "input_ids"
INPUTS_EMBEDS = "inputs_embeds"
POSITION_IDS = "position_ids"
CACHE_WRITE_INDEX = "cache_write_index"  # slot of each row's first new token
CACHE_LENGTH = "cache_length"  # slots in use after this step, padding included: cache_write_index + seq
LOGITS_INDEX = "logits_index"
LOGITS = "logits"

# Graphs, in the order of the data flow.
VISION, PROJECTOR, EMBED, DECODER = GRAPHS = ("vision", "projector", "embed", "decoder")
IMAGE_GRAPHS = (VISION, PROJECTOR)
"""Those that encode images."""

COMPUTE = "compute"
"""Stands for the dtype the graph computes in (float32, float16 or bfloat16), chosen per build."""

OPSET = 24
"""Default-domain ONNX opset of every exported graph."""

Dim = str | int

SYMBOLS: Mapping[str, str] = {
    "tiles": "tiles of all images together",
    "image_tokens": "tiles x tokens of a tile: the rows of all images' embeddings, in order",
    "batch": "sequences, independent of each other",
    "seq": "new tokens of each sequence in this step, padding included",
    "logit_positions": "new tokens of each sequence whose logits are computed",
    "capacity": "slots of each sequence's key-value cache",
}
"""What the symbols in shapes count."""


def past_key(layer: int | str) -> str:
    """Name of the decoder's input that holds a layer's cached keys."""
    return f"past_key_values.{layer}.key"


def past_value(layer: int | str) -> str:
    """Name of the decoder's input that holds a layer's cached values."""
    return f"past_key_values.{layer}.value"


def present_key(layer: int | str) -> str:
    """Name of the decoder's output that holds a layer's updated keys."""
    return f"present.{layer}.key"


def present_value(layer: int | str) -> str:
    """Name of the decoder's output that holds a layer's updated values."""
    return f"present.{layer}.value"


def cache_pairs(layers: int) -> list[tuple[str, str]]:
    """(past, present) names of every cache tensor, in the order of the decoder's inputs."""
    return [
        pair
        for layer in range(layers)
        for pair in ((past_key(layer), present_key(layer)), (past_value(layer), present_value(layer)))
    ]


def vision_block(layer: int) -> str:
    """Output of one ViT block [tiles, positions, vit_hidden]; inside the vision graph, exposed only for parity."""
    return f"vision_block.{layer}"


VISION_EMBEDDINGS = "vision_embeddings"
"""Input of the first ViT block [tiles, positions, vit_hidden]; inside the vision graph, as the blocks' outputs are."""


def decoder_layer(layer: int) -> str:
    """Output of one decoder layer [batch, seq, hidden]; inside the decoder graph, exposed only for parity."""
    return f"decoder_layer.{layer}"


@dataclass(frozen=True)
class TensorContract:
    """One tensor at a graph boundary. `shape` mixes symbols (dynamic) and sizes that the checkpoint fixes."""

    name: str
    shape: tuple[Dim, ...]
    dtype: str  # COMPUTE or an ONNX element type in lower case, such as "int64"


@dataclass(frozen=True)
class GraphContract:
    """The inputs and outputs of one graph, in order."""

    name: str
    inputs: tuple[TensorContract, ...]
    outputs: tuple[TensorContract, ...]


@dataclass(frozen=True)
class Sizes:
    """What the contract takes from the model. `ModelSpec.sizes` makes it; apart, so that this file imports nothing."""

    tile_size: int
    tokens_per_tile: int
    vision_features: int
    hidden: int
    vocab: int
    layers: int
    kv_heads: int
    head_dim: int


def graph_contracts(sizes: Sizes) -> Mapping[str, GraphContract]:
    """The four graphs of a model: vision -> projector -> embed -> decoder."""
    cache_shape: tuple[Dim, ...] = ("batch", sizes.kv_heads, "capacity", sizes.head_dim)
    features = TensorContract(VISION_FEATURES, ("tiles", sizes.tokens_per_tile, sizes.vision_features), COMPUTE)
    image_embeds = TensorContract(IMAGE_EMBEDS, ("tiles", sizes.tokens_per_tile, sizes.hidden), COMPUTE)
    inputs_embeds = TensorContract(INPUTS_EMBEDS, ("batch", "seq", sizes.hidden), COMPUTE)

    def cache(key_name: Callable[[int], str], value_name: Callable[[int], str]) -> tuple[TensorContract, ...]:
        names = (name(layer) for layer in range(sizes.layers) for name in (key_name, value_name))
        return tuple(TensorContract(name, cache_shape, COMPUTE) for name in names)

    vision = GraphContract(
        VISION,
        (TensorContract(PIXEL_VALUES, ("tiles", 3, sizes.tile_size, sizes.tile_size), COMPUTE),),
        (features,),
    )
    projector = GraphContract(PROJECTOR, (features,), (image_embeds,))
    embed = GraphContract(
        EMBED,
        (
            TensorContract(INPUT_IDS, ("batch", "seq"), "int64"),
            TensorContract(IMAGE_EMBEDS, ("image_tokens", sizes.hidden), COMPUTE),
        ),
        (inputs_embeds,),
    )
    decoder = GraphContract(
        DECODER,
        (
            inputs_embeds,
            TensorContract(POSITION_IDS, ("batch", "seq"), "int64"),
            TensorContract(CACHE_WRITE_INDEX, ("batch",), "int64"),
            TensorContract(CACHE_LENGTH, ("batch",), "int64"),
            TensorContract(LOGITS_INDEX, ("batch", "logit_positions"), "int64"),
            *cache(past_key, past_value),
        ),
        (
            TensorContract(LOGITS, ("batch", "logit_positions", sizes.vocab), COMPUTE),
            *cache(present_key, present_value),
        ),
    )
    return {graph.name: graph for graph in (vision, projector, embed, decoder)}


PREFILL_CHUNK = 512
"""Prompt tokens of a step where nobody else waits for it, or on a GPU, which needs so many to be busy. They bound what
attention takes, too."""

CPU_PREFILL_CHUNK = 160
"""The same on a CPU without tiles where others wait: products of so many rows run at the full rate there."""


@dataclass(frozen=True)
class PrefillLimits:
    """How prompts are best cut into pieces.

    Attributes:
        chunk: prompt tokens of a step, where nobody says how many: with fewer the engine has not its full rate, and
            with more all others wait longer for nothing.
        together: prompt tokens of a step that decodes as well, and of several prompts, where rows of different lengths
            go together: a step neither computes nor keeps what pads a row. 0 elsewhere.
        least: tokens of a piece, and of what is left of its prompt, at least, where the prompt has so many: fewer are
            rounded otherwise, so that an answer would depend on where its prompt is cut.
        short_tokens: tokens of all pieces that have fewer than `least`, in a step that decodes as well, where there is
            more than one: they are computed as what is decoded is, and more of them take longer.
    """

    chunk: int = PREFILL_CHUNK
    together: int = 0
    least: int = 1
    short_tokens: int = 0

    @staticmethod
    def of_device(device: str) -> PrefillLimits:
        """Those of an engine that computes one prompt at a time, on "cpu" or on a GPU."""
        return PrefillLimits(CPU_PREFILL_CHUNK if device == "cpu" else PREFILL_CHUNK)


@dataclass(frozen=True)
class CacheLimits:
    """What the key-value caches of an engine can be.

    Attributes:
        slot_bytes: of one token of one sequence, over all layers.
        max_rows: sequences of a decoder, at most; None for any number.
        capacity: slots that every sequence has, however few are asked for; None where they are as many as those.
        logit_positions: new tokens of a sequence whose logits one step gives, at most; None for any number.
        prefill: how prompts are cut.
    """

    slot_bytes: int
    max_rows: int | None = None
    capacity: int | None = None
    logit_positions: int | None = None
    prefill: PrefillLimits = PrefillLimits()


class Decoder(Protocol):
    """A decoder with a key-value cache for `batch` independent sequences of up to `capacity` tokens."""

    batch: int
    capacity: int

    def step(
        self,
        inputs_embeds: np.ndarray,
        position_ids: np.ndarray,
        cache_write_index: np.ndarray,
        cache_length: np.ndarray,
        logits_index: np.ndarray,
        first_row: int = 0,
    ) -> np.ndarray:
        """Run the decoder graph once, keep the cache, return float32 logits [batch, logit_positions, vocab].

        With S new tokens per row, row b fills cache slots `cache_write_index[b]` ... `cache_length[b] - 1`, where
        `cache_length = cache_write_index + S`; its n-th token sees the slots up to its own (causal, aligned at the
        end). A prompt is right-padded to the longest row: padding sits behind the row's valid tokens, counts in
        `cache_length`, is never seen by them, and its slots are overwritten by the tokens that come next.
        `logits_index` [batch, logit_positions] says after which new tokens logits are wanted; the largest of a row
        is its last valid token. An index may repeat.

        The rows of the inputs may be fewer than `batch`: they are the cache's from `first_row` on, and the others stay
        as they are.
        """

    def copy_row(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` slots of a row to another."""

    def swap_rows(self, a: int, b: int, length: int) -> None:
        """Exchange the first `length` slots of two rows."""

    def resize(self, batch: int, capacity: int, lengths: np.ndarray) -> None:
        """Change `batch` and `capacity`; row b of the new batch keeps its first `lengths[b]` slots, int64 [batch]."""


class VisionEngine(Protocol):
    """The graphs that encode images, runnable. Floating-point arrays are float32 at this boundary, whatever the
    engine computes in."""

    def vision(self, pixel_values: np.ndarray) -> np.ndarray:
        """Compute vision_features from pixel_values [tiles, 3, size, size], float32 in and out."""
        ...

    def projector(self, vision_features: np.ndarray) -> np.ndarray:
        """Compute image_embeds [tiles, tokens, hidden] from vision_features, float32 in and out."""
        ...


@runtime_checkable
class VisionBlocks(Protocol):
    """An engine that also shows the output of each ViT block in turn, float32 [T, positions, vit_hidden]."""

    def vision_blocks(self, pixel_values: np.ndarray) -> Iterator[np.ndarray]:
        """Yield the hidden states after each block for pixel_values [tiles, 3, size, size]."""
        ...


@runtime_checkable
class DecodesOneSequence(Protocol):
    """An engine with a decoder that is faster for one sequence without drafts."""

    def one_sequence_decoder(self, capacity: int) -> Decoder:
        """Open it with an empty cache of `capacity` slots. It takes several rows or drafts as well, more slowly."""
        ...


@runtime_checkable
class BeginsDecoder(Protocol):
    """An engine that can open what decodes in a thread, while its process does something else."""

    def begin_decoder(self, alone: bool) -> None:
        """Begin to open the decoder, and come back.

        The first use waits for it, and raises what opening has raised; the next one opens anew.

        Args:
            alone: the process does little between two steps but ask for the next one, so that waiting for it by
                spinning takes nothing from others. Else what can be done before the first prompt may be done, too, by
                libraries that do not survive a fork.
        """
        ...


class DecoderEngine(Protocol):
    """The decoder graph, runnable."""

    def decoder(self, batch: int, capacity: int) -> Decoder:
        """Open a decoder for `batch` sequences with an empty cache of `capacity` slots each."""
        ...

    def cache_limits(self) -> CacheLimits:
        """Describe what the caches of its decoders can be."""
        ...


class Engine(VisionEngine, DecoderEngine, Protocol):
    """All graphs of one model, runnable. The PyTorch reference and every built target offer this, and nothing else
    is asked of them by the runner and by parity."""

    name: str
    sizes: Sizes

    def embed(self, input_ids: np.ndarray, image_embeds: np.ndarray) -> np.ndarray:
        """Compute inputs_embeds [batch, tokens, hidden] from input_ids [batch, tokens] and image_embeds [N, hidden]."""
        ...


class BlockwiseEngine(Protocol):
    """An engine of which one block is held at a time: each method opens a block, and dropping what it returns closes
    it. In the order of the data flow."""

    name: str
    sizes: Sizes
    vision_layers: int

    def vision_embeddings(self) -> Run:
        """Open what comes before the first ViT block: pixel_values [tiles, 3, size, size] to hidden [tiles, positions,
        vit_hidden]."""
        ...

    def vision_block(self, layer: int) -> Run:
        """Open a ViT block: hidden [tiles, positions, vit_hidden] to the same."""
        ...

    def vision_features(self) -> Run:
        """Open what comes after the last ViT block: hidden to vision_features."""
        ...

    def projector(self) -> Run:
        """Open the projector: vision_features to image_embeds."""
        ...

    def embed(self) -> Embed:
        """Open the token embeddings: input_ids [1, seq] and image_embeds [N, hidden] to inputs_embeds."""
        ...

    def decoder_layer(self, layer: int) -> OpenCache:
        """Open a decoder layer; sequences have a cache each."""
        ...

    def head(self) -> Run:
        """Open the final norm and the head: hidden [rows, hidden] to logits [rows, vocab]."""
        ...
