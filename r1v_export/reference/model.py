"""The whole model in PyTorch, and the same model as an `Engine`: what every built engine is compared with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager

import numpy as np
import torch
from torch import Tensor, nn

from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.contract import CacheLimits, PrefillLimits
from r1v_export.model_spec import ModelSpec
from r1v_export.reference.embed import Embed
from r1v_export.reference.language import CacheStep, LanguageModel, LayerCache, rotary_tables
from r1v_export.reference.magnitudes import Magnitudes, recorded
from r1v_export.reference.projector import Projector
from r1v_export.reference.vision import VisionModel


class Model(nn.Module):
    """All weights under their published names: `vision_model.*`, `mlp1.*`, `language_model.*`."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.spec = spec
        self.vision_model = VisionModel(spec)
        self.mlp1 = Projector(spec.projector)
        self.language_model = LanguageModel(spec.language)

    def image_embeds(self, pixels_T3HW: Tensor) -> Tensor:
        """Normalized tiles -> image embeddings [T, N, E]."""
        embeds_TNE: Tensor = self.mlp1(self.vision_model(pixels_T3HW))
        return embeds_TNE

    @property
    def embed(self) -> Embed:
        """The embed module, which shares the language model's embedding table."""
        return Embed(self.language_model.model.embed_tokens, self.spec.image_token_id)


def load(checkpoint: Checkpoint, dtype: torch.dtype = torch.float32) -> Model:
    """The model with a checkpoint's weights, cast to `dtype`.

    Weights that are stored in `dtype` stay copy-on-write maps of their files.
    """
    with torch.device("meta"):
        model = Model(checkpoint.spec)
    model.load_state_dict({name: checkpoint.read(name).to(dtype) for name in checkpoint.tensors}, assign=True)
    if checkpoint.spec.language.tie_word_embeddings:
        model.language_model.lm_head.weight = model.language_model.model.embed_tokens.weight
    return model.eval().requires_grad_(False)


class ReferenceEngine:
    """A `contract.Engine` that computes with PyTorch, eagerly, in the dtype of the model's weights."""

    name = "pytorch"

    def __init__(self, model: Model) -> None:
        self.model = model.eval().requires_grad_(False)
        self.sizes = model.spec.sizes
        weight = model.language_model.lm_head.weight
        self.dtype, self.device = weight.dtype, weight.device

    def vision(self, pixel_values: np.ndarray) -> np.ndarray:
        return self._array(self.model.vision_model(self._tensor(pixel_values)))

    def vision_blocks(self, pixel_values: np.ndarray) -> Iterator[np.ndarray]:
        """Output of each ViT block in turn, [tiles, positions, vit_hidden]."""
        hidden = self.model.vision_model.embeddings(self._tensor(pixel_values))
        for block in self.model.vision_model.encoder.layers:
            hidden = block(hidden)
            yield self._array(hidden)

    def recorded(self) -> AbstractContextManager[Magnitudes]:
        """Record the largest magnitude of every tensor inside the model in the meantime."""
        return recorded(self.model)

    def projector(self, vision_features: np.ndarray) -> np.ndarray:
        return self._array(self.model.mlp1(self._tensor(vision_features)))

    def embed(self, input_ids: np.ndarray, image_embeds: np.ndarray) -> np.ndarray:
        ids = torch.from_numpy(input_ids).to(self.device)
        return self._array(self.model.embed(ids, self._tensor(image_embeds)))

    def decoder(self, batch: int, capacity: int) -> ReferenceDecoder:
        return ReferenceDecoder(self, batch, capacity)

    def cache_limits(self) -> CacheLimits:
        sizes = self.sizes
        slot_bytes = 2 * sizes.layers * sizes.kv_heads * sizes.head_dim * self.dtype.itemsize
        return CacheLimits(slot_bytes, prefill=PrefillLimits.of_device(self.device.type))

    def _tensor(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(self.device, self.dtype)

    def _array(self, tensor: Tensor) -> np.ndarray:
        return tensor.float().cpu().numpy()


class ReferenceDecoder:
    """A `contract.Decoder` that computes with PyTorch."""

    def __init__(self, engine: ReferenceEngine, batch: int, capacity: int) -> None:
        self.engine, self.batch, self.capacity = engine, batch, capacity
        self.language_model = engine.model.language_model
        self.cache = self.language_model.empty_cache(batch, capacity)
        self.rotary = rotary_tables(self.language_model.spec, capacity)

    def step(
        self,
        inputs_embeds: np.ndarray,
        position_ids: np.ndarray,
        cache_write_index: np.ndarray,
        cache_length: np.ndarray,
        logits_index: np.ndarray,
        first_row: int = 0,
    ) -> np.ndarray:
        engine, rows = self.engine, slice(first_row, first_row + len(inputs_embeds))
        where = (torch.from_numpy(a).to(engine.device) for a in (position_ids, cache_write_index, cache_length))
        logits_BPV, updated = self.language_model(
            engine._tensor(inputs_embeds),
            self.rotary,
            CacheStep(*where),
            [LayerCache(layer.key[rows], layer.value[rows]) for layer in self.cache],
            torch.from_numpy(logits_index).to(engine.device),
        )
        if len(inputs_embeds) == self.batch:
            self.cache = updated
        else:
            for layer, part in zip(self.cache, updated, strict=True):
                layer.key[rows], layer.value[rows] = part
        return engine._array(logits_BPV)

    def copy_row(self, source: int, target: int, length: int) -> None:
        for tensor in self._tensors():
            tensor[target, :, :length] = tensor[source, :, :length]

    def swap_rows(self, a: int, b: int, length: int) -> None:
        for tensor in self._tensors():
            tensor[[a, b], :, :length] = tensor[[b, a], :, :length]

    def resize(self, batch: int, capacity: int, lengths: np.ndarray) -> None:
        resized = self.language_model.empty_cache(batch, capacity)
        for old, new in zip(self._tensors(), (tensor for layer in resized for tensor in layer), strict=True):
            for row, length in enumerate(lengths[: self.batch]):
                new[row, :, :length] = old[row, :, :length]
        self.batch, self.capacity, self.cache = batch, capacity, resized
        self.rotary = rotary_tables(self.language_model.spec, capacity)

    def _tensors(self) -> Iterator[Tensor]:
        return (tensor for layer in self.cache for tensor in layer)
