"""Models of R1V's form, tiny and random, for whatever needs one that runs in milliseconds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from r1v_export.model_spec import ModelSpec
from r1v_export.reference.model import Model

_SPEC: dict[str, Any] = {
    "layout": "internvl_chat",
    "architecture": "SkyworkChatModel",
    "image_token_id": 7,
    "template": "r1v3",
    "dtype": "float32",
    "vision": {
        "hidden_size": 64,
        "num_heads": 2,
        "num_layers": 2,
        "intermediate_size": 128,
        "patch_size": 14,
        "image_size": 56,
        "norm": "rms_norm",
        "norm_eps": 1e-6,
        "qk_norm": True,
        "qkv_bias": False,
    },
    "projector": {"shuffle": 2, "ps_version": "v2", "in_features": 256, "hidden_size": 64},
    "language": {
        "hidden_size": 64,
        "num_layers": 2,
        "num_heads": 4,
        "num_kv_heads": 2,
        "head_dim": 16,
        "intermediate_size": 128,
        "vocab_size": 99,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
        "max_position_embeddings": 256,
        "tie_word_embeddings": False,
    },
    "tiling": {"tile_size": 56, "min_tiles": 1, "max_tiles": 4, "use_thumbnail": True, "dynamic": True},
}
_PARTS = ("vision", "projector", "language", "tiling")


def tiny_spec(**changes: Any) -> ModelSpec:
    """A two-layer R1V of nano's proportions.

    Args:
        changes: fields of ModelSpec, of one part (`vision={"num_layers": 3}`), or by their name alone of the first part
            that has it, such as `norm` or `ps_version`.
    """
    spec = {name: dict(value) if name in _PARTS else value for name, value in _SPEC.items()}
    for field, value in changes.items():
        if field in _PARTS:
            spec[field] |= value
        elif field in spec:
            spec[field] = value
        else:
            spec[next(part for part in _PARTS if field in spec[part])][field] = value
    return ModelSpec.model_validate(spec)


@dataclass
class MemoryCheckpoint:
    """What the exporters ask of a checkpoint, over a state dict."""

    spec: ModelSpec
    tensors: dict[str, torch.Tensor]

    def read(self, name: str) -> torch.Tensor:
        return self.tensors[name]


def random_model(spec: ModelSpec) -> Model:
    torch.manual_seed(0)
    model = Model(spec)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model


def checkpoint_of(model: Model) -> MemoryCheckpoint:
    return MemoryCheckpoint(model.spec, {name: tensor.detach() for name, tensor in model.state_dict().items()})
