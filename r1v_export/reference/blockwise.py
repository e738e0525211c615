"""The model in PyTorch with one block of weights held at a time, as a `contract.BlockwiseEngine`.

Shape letters: T tiles, P positions, S new tokens, R rows, E hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from r1v_export.model_spec import LanguageSpec, ModelSpec
from r1v_export.reference import vision
from r1v_export.reference.embed import Embed as EmbedModule
from r1v_export.reference.language import CacheStep, DecoderLayer, LayerCache, rotary_tables
from r1v_export.reference.magnitudes import Magnitudes, recorded
from r1v_export.reference.projector import Projector
from r1v_export.reference.vision import RMSNorm

if TYPE_CHECKING:
    from r1v_export.contract import Embed, OpenCache, Run, RunWithCache

TILES_AT_ONCE = 2
"""Tiles that go through a block together; bounds the memory of its activations."""

Fill = Callable[[nn.Module, str], nn.Module]
"""Gives a block its weights, and whatever it rounds, in place.

The block's tensors are on the device "meta" and have the names of the model behind a prefix, the second argument. An
embedding table may keep the dtype that it is stored in; all other tensors are float32."""


Module = Callable[..., Any]
"""Computes a module's forward pass."""


class Head(nn.Module):
    """hidden [R, E] -> logits [R, V], the final norm included; names as in the language model."""

    def __init__(self, spec: LanguageSpec) -> None:
        super().__init__()
        self.model = nn.ModuleDict({"norm": RMSNorm(spec.hidden_size, spec.rms_norm_eps)})
        self.lm_head = nn.Linear(spec.hidden_size, spec.vocab_size, bias=False)

    def forward(self, hidden_RE: Tensor) -> Tensor:
        logits_RV: Tensor = self.lm_head(self.model["norm"](hidden_RE))
        return logits_RV


class TorchBlocks:
    """Computes with PyTorch on the CPU, in float32.

    Args:
        name: of the engine.
        spec: the model.
        fill: gives a block its weights.
    """

    def __init__(self, name: str, spec: ModelSpec, fill: Fill) -> None:
        self.name, self.spec, self._fill = name, spec, fill
        self.sizes, self.vision_layers = spec.sizes, spec.vision.num_layers
        self._magnitudes: Magnitudes | None = None

    def vision_embeddings(self) -> Run:
        return self._tiles(lambda: vision.Embeddings(self.spec), "vision_model.embeddings.")

    def vision_block(self, layer: int) -> Run:
        return self._tiles(lambda: vision.Block(self.spec.vision), f"vision_model.encoder.layers.{layer}.")

    def vision_features(self) -> Run:
        with torch.device("meta"):
            to_features = vision.VisionModel(self.spec).to_features
        return lambda hidden_TPE: _array(to_features(torch.from_numpy(hidden_TPE)))

    def projector(self) -> Run:
        return self._tiles(lambda: Projector(self.spec.projector), "mlp1.")

    def embed(self) -> Embed:
        language = self.spec.language

        def build() -> nn.Module:
            # nn.Embedding's own constructor would draw random numbers, which on "meta" imports torch's compiler first.
            table = nn.Embedding.from_pretrained(torch.empty(language.vocab_size, language.hidden_size))
            return EmbedModule(table, self.spec.image_token_id)

        module = self._open(build, "language_model.model.")
        return lambda ids_1S, images_NE: _array(module(torch.from_numpy(ids_1S), torch.from_numpy(images_NE)))

    def decoder_layer(self, layer: int) -> OpenCache:
        language = self.spec.language
        module = self._open(lambda: DecoderLayer(language), f"language_model.model.layers.{layer}.")
        return lambda capacity: _row(module, language, capacity)

    def head(self) -> Run:
        module = self._open(lambda: Head(self.spec.language), "language_model.")
        return lambda hidden_RE: _array(module(torch.from_numpy(hidden_RE)))

    @contextmanager
    def recorded(self) -> Iterator[Magnitudes]:
        """Record the largest magnitude of every tensor inside the model in the meantime."""
        self._magnitudes = Magnitudes()
        try:
            yield self._magnitudes
        finally:
            self._magnitudes = None

    def _tiles(self, build: Callable[[], nn.Module], prefix: str) -> Run:
        return in_tile_groups(self._open(build, prefix))

    def _open(self, build: Callable[[], nn.Module], prefix: str) -> Module:
        with torch.device("meta"):
            module = build()
        module = self._fill(module, prefix).eval().requires_grad_(False)

        def compute(*args: Any) -> Any:
            recording = nullcontext() if self._magnitudes is None else recorded(module, prefix, self._magnitudes)
            with recording:
                return module(*args)

        return compute


def in_tile_groups(block: Module) -> Run:
    """Compute [tiles, ...] from [tiles, ...], `TILES_AT_ONCE` at a time."""

    def run(x_T: np.ndarray) -> np.ndarray:
        return np.concatenate([_array(block(tiles)) for tiles in torch.from_numpy(x_T).split(TILES_AT_ONCE)])

    return run


def _row(layer: Module, spec: LanguageSpec, capacity: int) -> RunWithCache:
    """Compute one sequence with a cache of its own."""
    shape = (1, spec.num_kv_heads, capacity, spec.head_dim)
    cache, rotary = LayerCache(torch.zeros(shape), torch.zeros(shape)), rotary_tables(spec, capacity)

    def run(hidden_1SE: np.ndarray, start: int) -> np.ndarray:
        nonlocal cache
        end = start + hidden_1SE.shape[1]
        step = CacheStep(torch.arange(start, end)[None], torch.tensor([start]), torch.tensor([end]))
        output_1SE, cache = layer(torch.from_numpy(hidden_1SE), rotary, step, cache)
        return _array(output_1SE)

    return run


def _array(tensor: Tensor) -> np.ndarray:
    array: np.ndarray = tensor.detach().numpy()
    return array
