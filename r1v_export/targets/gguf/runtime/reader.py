"""A bundle's GGUF files as an engine, computed by PyTorch from the files alone: the proof of what was written."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from r1v_export.checkpoint.gguf.names import MMPROJ_FILE, MODEL_FILE, stored_tensors
from r1v_export.model_spec import ModelSpec
from r1v_export.reference.model import Model, ReferenceEngine
from r1v_export.targets.gguf.runtime.clip import Clip, ClipProjector, ClipTower, round_inputs
from r1v_export.targets.gguf.runtime.files import EIGHT_BIT, BundleFile


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
    with torch.device("meta"):
        model = Model(spec)
    language = BundleFile(folder / MODEL_FILE)
    weights: dict[str, Tensor] = {}
    for canonical, stored in stored_tensors(spec).items():
        if stored.file == MODEL_FILE:
            (name,) = stored.names
            weights[canonical.removeprefix("language_model.")] = language.read(name).to(device)
            if language.kind(name) in EIGHT_BIT and not canonical.endswith("embed_tokens.weight"):
                module = model.get_submodule(canonical.removesuffix(".weight"))
                module.register_forward_pre_hook(_round_inputs)
    if spec.language.tie_word_embeddings:
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    model.language_model.load_state_dict(weights, assign=True)
    return GgufEngine(model, Clip(BundleFile(folder / MMPROJ_FILE), spec, device))


def _round_inputs(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (round_inputs(inputs[0]),)
