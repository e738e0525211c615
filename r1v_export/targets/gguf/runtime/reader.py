"""A bundle's GGUF files as an engine, computed by PyTorch from the files alone: the proof of what was written."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from r1v_export.checkpoint.gguf.names import MMPROJ_FILE, MODEL_FILE, stored_tensors
from r1v_export.checkpoint.names import EMBED_TOKENS, LM_HEAD
from r1v_export.errors import BundleError
from r1v_export.model_spec import ModelSpec
from r1v_export.reference.model import Model, ReferenceEngine
from r1v_export.targets.gguf.runtime.clip import Clip, ClipProjector, ClipTower, round_inputs
from r1v_export.targets.gguf.runtime.files import INPUTS_PER_SCALE, BundleFile


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
    missing = [file for file in (MODEL_FILE, MMPROJ_FILE) if not (folder / file).is_file()]
    if missing:
        raise BundleError(
            "Only both GGUF files together answer.",
            where=folder,
            expected=f"{MODEL_FILE}, {MMPROJ_FILE}",
            found=f"no {' and no '.join(missing)}",
            fix="build the bundle again, with `files: both` in the block of gguf in the build file",
        )
    with torch.device("meta"):
        model = Model(spec)
    language = BundleFile(folder / MODEL_FILE)
    weights: dict[str, Tensor] = {}
    for canonical, stored in stored_tensors(spec).items():
        if stored.file == MODEL_FILE:
            (name,) = stored.names
            weights[canonical.removeprefix("language_model.")] = language.read(name).to(device)
            product = _product_of(canonical, spec)
            per_scale = INPUTS_PER_SCALE.get(language.kind(name))
            if product is not None and per_scale is not None:
                model.get_submodule(product).register_forward_pre_hook(partial(_round_inputs, per_scale))
    if spec.language.tie_word_embeddings:
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    model.language_model.load_state_dict(weights, assign=True)
    return GgufEngine(model, Clip(BundleFile(folder / MMPROJ_FILE), spec, device))


def _product_of(canonical: str, spec: ModelSpec) -> str | None:
    """The module that multiplies by a weight; none for a token embedding that is not the head too."""
    if canonical == EMBED_TOKENS:
        return LM_HEAD.removesuffix(".weight") if spec.language.tie_word_embeddings else None
    return canonical.removesuffix(".weight")


def _round_inputs(per_scale: int, _: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (round_inputs(inputs[0], per_scale),)
