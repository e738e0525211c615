"""A TensorRT-LLM checkpoint as the contract's engine, without TensorRT-LLM: PyTorch computes what the rank files say.

The parity gate runs it: language model and embeddings out of the rank files of all GPUs, vision and
projector out of the bundle's standard graphs, which is what a deployment's vision engine is built from.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from r1v_export.config import Device
from r1v_export.errors import BundleError
from r1v_export.model_spec import LanguageSpec, ModelSpec
from r1v_export.quantization.apply.torch import apply
from r1v_export.reference.model import Model, ReferenceEngine
from r1v_export.targets.tensorrt_llm.checkpoint.reader import read_checkpoint

if TYPE_CHECKING:
    from r1v_export.targets.onnxruntime.runtime.engine import OnnxRuntimeEngine


def load_language_model(folder: Path, spec: ModelSpec) -> Model:
    """A model whose language part is that of a checkpoint folder, in float32; its vision part has no weights.

    Raises:
        BundleError: the checkpoint is damaged, or of another model.
    """
    checkpoint = read_checkpoint(folder)
    _require_spec(checkpoint.spec, spec.language, folder)
    with torch.device("meta"):
        model = Model(spec)
    weights = {f"language_model.{name}": tensor.float() for name, tensor in checkpoint.tensors.items()}
    model.load_state_dict(weights, strict=False, assign=True)
    caches = {f"model.layers.{layer}.self_attn": scales for layer, scales in checkpoint.kv_scales.items()}
    # On the CPU, whatever device the parts without weights are on.
    apply(model.language_model, checkpoint.linears, {}, cache_scales=caches)
    _require_whole(model, folder)
    return model


def _require_spec(found: LanguageSpec, expected: LanguageSpec, folder: Path) -> None:
    written: dict[str, Any] = {"tie_word_embeddings": False}  # The head is written out.
    if expected.rope_scaling is not None and expected.rope_scaling.type == "dynamic":
        written["rope_scaling"] = None  # It does nothing up to max_position_embeddings.
    if found != expected.model_copy(update=written):
        ours, theirs = expected.model_dump() | written, found.model_dump()
        differing = [name for name in ours if ours[name] != theirs[name]]
        raise BundleError(
            "The TensorRT-LLM checkpoint is of another model.",
            where=folder,
            expected=", ".join(f"{name} {ours[name]}" for name in differing),
            found=", ".join(f"{name} {theirs[name]}" for name in differing),
            fix="build the bundle again",
        )


def _require_whole(model: Model, folder: Path) -> None:
    missing = [name for name, tensor in model.language_model.state_dict().items() if tensor.is_meta]
    if missing:
        raise BundleError(
            "The TensorRT-LLM checkpoint lacks weights.", where=folder, found=", ".join(missing), fix="build it again"
        )


class CheckpointEngine(ReferenceEngine):
    """An engine that computes the checkpoint with PyTorch and the vision graphs with ONNX Runtime.

    Args:
        model: of `load_language_model`.
        vision: runs the standard vision and projector graphs.
    """

    name = "tensorrt-llm"

    def __init__(self, model: Model, vision: OnnxRuntimeEngine, device: Device) -> None:
        model.language_model.to(device)
        super().__init__(model)
        self._vision_engine = vision

    def vision(self, pixel_values: np.ndarray) -> np.ndarray:
        return self._vision_engine.vision(pixel_values)

    def vision_blocks(self, pixel_values: np.ndarray) -> Iterator[np.ndarray]:
        return self._vision_engine.vision_blocks(pixel_values)

    def projector(self, vision_features: np.ndarray) -> np.ndarray:
        return self._vision_engine.projector(vision_features)
