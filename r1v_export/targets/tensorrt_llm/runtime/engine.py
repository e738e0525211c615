"""A TensorRT-LLM checkpoint as the contract's engine, without TensorRT-LLM: PyTorch computes what the rank files say.

The parity gate runs it: language model and embeddings out of the rank files of all GPUs, vision and
projector out of the bundle's standard graphs, which is what a deployment's vision engine is built from.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from r1v_export.config import Device
from r1v_export.errors import BundleError
from r1v_export.gpus import require_device
from r1v_export.model_spec import LanguageSpec, ModelSpec
from r1v_export.quantization.apply.torch import apply
from r1v_export.reference.blockwise import TorchBlocks
from r1v_export.reference.model import Model, ReferenceEngine
from r1v_export.targets.tensorrt_llm.checkpoint.reader import CheckpointReader, Part, read_checkpoint

if TYPE_CHECKING:
    from r1v_export.targets.onnxruntime.blockwise import OnnxRuntimeBlocks
    from r1v_export.targets.onnxruntime.runtime.engine import OnnxRuntimeEngine

_TABLE = "model.embed_tokens.weight"
"""Stays in the dtype that it is stored in: rows are taken from its map, whose pages the kernel gives back."""


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
        raise _lacks(missing, folder)


def _lacks(missing: Sequence[str], folder: Path) -> BundleError:
    return BundleError(
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
        require_device(device)
        model.language_model.to(device)
        super().__init__(model)
        self._vision_engine = vision

    def vision(self, pixel_values: np.ndarray) -> np.ndarray:
        return self._vision_engine.vision(pixel_values)

    def vision_blocks(self, pixel_values: np.ndarray) -> Iterator[np.ndarray]:
        return self._vision_engine.vision_blocks(pixel_values)

    def projector(self, vision_features: np.ndarray) -> np.ndarray:
        return self._vision_engine.projector(vision_features)


class CheckpointBlocks(TorchBlocks):
    """The same with one block of weights held at a time.

    Args:
        folder: of the checkpoint.
        vision: slices of the standard vision and projector graphs.

    Raises:
        BundleError: the checkpoint is damaged, or of another model.
    """

    def __init__(self, folder: Path, spec: ModelSpec, vision: OnnxRuntimeBlocks) -> None:
        reader = CheckpointReader(folder)
        _require_spec(reader.spec(), spec.language, folder)
        super().__init__(CheckpointEngine.name, spec, partial(_fill, reader))
        self.vision_embeddings, self.vision_block = vision.vision_embeddings, vision.vision_block  # type: ignore[method-assign]
        self.vision_features, self.projector = vision.vision_features, vision.projector  # type: ignore[method-assign]


def _fill(reader: CheckpointReader, module: nn.Module, prefix: str) -> nn.Module:
    """Give a block of the language model its weights."""
    prefix = prefix.removeprefix("language_model.")
    part = _part(reader, prefix)
    weights = {
        name.removeprefix(prefix): tensor if name == _TABLE else tensor.float() for name, tensor in part.tensors.items()
    }
    module.load_state_dict(weights, strict=False, assign=True)
    caches = {f"model.layers.{layer}.self_attn": scales for layer, scales in part.kv_scales.items()}
    apply(module, part.linears, {}, prefix, caches)
    missing = [prefix + name for name, tensor in module.state_dict().items() if tensor.is_meta]
    if missing:
        raise _lacks(missing, reader.folder)
    return module


def _part(reader: CheckpointReader, prefix: str) -> Part:
    if layer := re.fullmatch(r"model\.layers\.(\d+)\.", prefix):
        return reader.layer(int(layer[1]))
    return reader.embeddings() if prefix == "model." else reader.head()
