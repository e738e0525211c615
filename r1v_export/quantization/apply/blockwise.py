"""The reference model a block at a time, as it is or quantized as a calibration says: what a streamed gate compares
with."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.checkpoint.names import EMBED_TOKENS, LM_HEAD
from r1v_export.quantization.apply.torch import FakeQuantCache, FakeQuantLinear
from r1v_export.quantization.apply.weight_check import require_own_scale
from r1v_export.quantization.artifact.artifact import Artifact
from r1v_export.reference.blockwise import TorchBlocks
from r1v_export.reference.language import Attention


def reference_blocks(checkpoint: Checkpoint, artifact: Artifact | None = None) -> TorchBlocks:
    """PyTorch in float32 on a checkpoint's weights; fake-quantized where there is an artifact.

    Its blocks raise ParityError where a scale of the artifact cannot be that of the weight or input that it is for.
    """

    def fill(module: nn.Module, prefix: str) -> nn.Module:
        if artifact is not None:
            for name in _quantized_in(module, prefix, artifact):
                _quantize(module, prefix, name, checkpoint, artifact)
            _quantize_cache(module, prefix, artifact)
        weights = {
            name: _read(prefix + name, checkpoint, artifact)
            for name, tensor in module.state_dict().items()
            if tensor.is_meta
        }
        module.load_state_dict(weights, strict=False, assign=True)
        return module

    return TorchBlocks("pytorch", checkpoint.spec, fill)


def _quantized_in(module: nn.Module, prefix: str, artifact: Artifact) -> list[str]:
    linears = {name for name, child in module.named_modules() if isinstance(child, nn.Linear)}
    return sorted(name for name in linears if prefix + name in artifact.schemes)


def _quantize(module: nn.Module, prefix: str, name: str, checkpoint: Checkpoint, artifact: Artifact) -> None:
    """Put a quantized linear in its place, without holding its original weight."""
    linear = artifact.linear(prefix + name)
    require_own_scale(artifact, prefix + name, lambda other: _read_original(f"{other}.weight", checkpoint), linear)
    has_bias = module.get_submodule(name).bias is not None
    bias = _read(f"{prefix}{name}.bias", checkpoint, artifact) if has_bias else None
    module.set_submodule(name, FakeQuantLinear(linear, bias))


def _quantize_cache(module: nn.Module, prefix: str, artifact: Artifact) -> None:
    inside = {prefix + name: name for name, child in module.named_modules() if isinstance(child, Attention)}
    for attention, scales in artifact.cache_scales.items():
        for what, scale in scales.items() if attention in inside else ():
            module.set_submodule(f"{inside[attention]}.cached_{what}", FakeQuantCache(scale, scales.kind))


def _read(name: str, checkpoint: Checkpoint, artifact: Artifact | None) -> Tensor:
    if artifact is not None and name in artifact.overrides:
        return artifact.overrides[name]()
    tensor = _read_original(name, checkpoint)
    # The embedding table stays a map of its file, whose pages the kernel gives back: rows are taken from it.
    return tensor if name == EMBED_TOKENS else tensor.to(torch.float32)


def _read_original(name: str, checkpoint: Checkpoint) -> Tensor:
    tied = name == LM_HEAD and checkpoint.spec.language.tie_word_embeddings
    return checkpoint.read(EMBED_TOKENS if tied else name)
