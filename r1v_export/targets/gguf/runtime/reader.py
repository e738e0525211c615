"""A bundle's GGUF files as an engine, computed by PyTorch from the files alone: the proof of what was written."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from r1v_export.checkpoint.gguf.names import MMPROJ_FILE, MODEL_FILE, stored_tensors
from r1v_export.checkpoint.names import EMBED_TOKENS, LM_HEAD
from r1v_export.errors import BundleError
from r1v_export.gpus import require_device
from r1v_export.model_spec import ModelSpec
from r1v_export.reference.blockwise import TorchBlocks, in_tile_groups
from r1v_export.reference.embed import Embed
from r1v_export.reference.model import Model, ReferenceEngine
from r1v_export.targets.gguf.runtime.clip import (
    Clip,
    ClipEmbeddings,
    ClipLayer,
    ClipProjector,
    ClipTower,
    round_inputs,
    vision_features,
)
from r1v_export.targets.gguf.runtime.files import INPUTS_PER_SCALE, BundleFile

if TYPE_CHECKING:
    from r1v_export import contract


class GgufEngine(ReferenceEngine):
    """The whole model in float32 on dequantized weights, rounding what llama.cpp rounds."""

    name = "gguf"

    def __init__(self, model: Model, clip: Clip) -> None:
        super().__init__(model)
        self._tower, self._projector = ClipTower(clip), ClipProjector(clip)

    def vision(self, pixel_values: np.ndarray) -> np.ndarray:
        return self._array(self._tower.features(self._tensor(pixel_values)))

    def vision_blocks(self, pixel_values: np.ndarray) -> Iterator[np.ndarray]:
        return (self._array(hidden) for hidden in self._tower.blocks(self._tensor(pixel_values)))

    def projector(self, vision_features: np.ndarray) -> np.ndarray:
        return self._array(self._projector(self._tensor(vision_features)))


def open_gguf(folder: Path, spec: ModelSpec, device: str) -> GgufEngine:
    """Open a folder as an engine.

    Raises:
        BundleError: a file is missing or damaged, or a tensor is not there.
    """
    _require_both(folder)
    with torch.device("meta"):
        model = Model(spec)
    language = BundleFile(folder / MODEL_FILE)
    _fill(language, model.language_model, "language_model.", spec)
    require_device(device)
    model.language_model.to(device)
    return GgufEngine(model, Clip(BundleFile(folder / MMPROJ_FILE), spec, device))


class GgufBlocks(TorchBlocks):
    """The same with one block of weights held at a time. Rows of the embedding table are taken from the file.

    Raises:
        BundleError: a file is missing or damaged; also when a block is opened.
    """

    def __init__(self, folder: Path, spec: ModelSpec) -> None:
        _require_both(folder)
        self._language = BundleFile(folder / MODEL_FILE)
        self._clip = Clip(BundleFile(folder / MMPROJ_FILE), spec, "cpu")
        super().__init__(GgufEngine.name, spec, lambda module, prefix: _fill(self._language, module, prefix, spec))

    def vision_embeddings(self) -> contract.Run:
        embeddings = ClipEmbeddings(self._clip)
        return in_tile_groups(lambda pixels: self._clip.narrowed(embeddings(pixels)))

    def vision_block(self, layer: int) -> contract.Run:
        block = ClipLayer(self._clip, layer)
        return in_tile_groups(lambda hidden: self._clip.narrowed(block(self._clip.widened(hidden))))

    def vision_features(self) -> contract.Run:
        return in_tile_groups(lambda hidden: vision_features(self.spec, hidden))

    def projector(self) -> contract.Run:
        return in_tile_groups(ClipProjector(self._clip))

    def embed(self) -> contract.Embed:
        (table,) = stored_tensors(self.spec)[EMBED_TOKENS].names
        module = Embed(_RowsOfFile(self._language, table), self.spec.image_token_id)
        return lambda ids_1S, images_NE: module(torch.from_numpy(ids_1S), torch.from_numpy(images_NE)).numpy()


class _RowsOfFile(nn.Module):
    """An embedding table whose rows are read when they are looked up."""

    def __init__(self, file: BundleFile, name: str) -> None:
        super().__init__()
        self.file, self.name = file, name

    def forward(self, ids_BS: Tensor) -> Tensor:
        return self.file.read_rows(self.name, ids_BS)


def _require_both(folder: Path) -> None:
    missing = [file for file in (MODEL_FILE, MMPROJ_FILE) if not (folder / file).is_file()]
    if missing:
        raise BundleError(
            "Only both GGUF files together answer.",
            where=folder,
            expected=f"{MODEL_FILE}, {MMPROJ_FILE}",
            found=f"no {' and no '.join(missing)}",
            fix="build the bundle again, with `files: both` in the block of gguf in the build file",
        )


def _fill(file: BundleFile, module: nn.Module, prefix: str, spec: ModelSpec) -> nn.Module:
    """Give the language model or a block of it its weights, and hooks that round the inputs of products.

    Args:
        prefix: of its names in the whole model.
    """
    stored = stored_tensors(spec)
    weights: dict[str, Tensor] = {}
    for name in module.state_dict():
        canonical = prefix + name
        is_tied = canonical == LM_HEAD and spec.language.tie_word_embeddings
        (in_file,) = stored[EMBED_TOKENS if is_tied else canonical].names
        embedding = EMBED_TOKENS.removeprefix(prefix)
        weights[name] = weights[embedding] if is_tied and embedding in weights else file.read(in_file)
        product = module.get_submodule(name.rpartition(".")[0])
        per_scale = INPUTS_PER_SCALE.get(file.kind(in_file))
        if isinstance(product, nn.Linear) and per_scale is not None:
            product.register_forward_pre_hook(partial(_round_inputs, per_scale))
    module.load_state_dict(weights, assign=True)
    return module


def _round_inputs(per_scale: int, _: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (round_inputs(inputs[0], per_scale),)
