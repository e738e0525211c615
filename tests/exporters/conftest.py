"""Small models for the exporters: an in-memory checkpoint of random weights, and its PyTorch reference."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from r1v_export.checkpoint.spec import LanguageSpec, ModelSpec, ProjectorSpec, TilingSpec, VisionSpec
from r1v_export.reference.model import Model


@dataclass
class MemoryCheckpoint:
    """What the exporters ask of a checkpoint, over a state dict."""

    spec: ModelSpec
    tensors: dict[str, torch.Tensor]

    def read(self, name: str) -> torch.Tensor:
        return self.tensors[name]


def tiny_spec(**changes: object) -> ModelSpec:
    """A two-layer R1V of nano's proportions; `changes` are fields of its parts, such as `norm` or `ps_version`."""
    parts = {
        "vision": VisionSpec(
            hidden_size=64,
            num_heads=2,
            num_layers=2,
            intermediate_size=128,
            patch_size=14,
            image_size=56,
            norm="rms_norm",
            norm_eps=1e-6,
            qk_norm=True,
            qkv_bias=False,
        ),
        "projector": ProjectorSpec(shuffle=2, ps_version="v2", in_features=256, hidden_size=64),
        "language": LanguageSpec(
            hidden_size=64,
            num_layers=2,
            num_heads=4,
            num_kv_heads=2,
            head_dim=16,
            intermediate_size=128,
            vocab_size=99,
            rms_norm_eps=1e-6,
            rope_theta=1e6,
            max_position_embeddings=256,
            tie_word_embeddings=False,
        ),
        "tiling": TilingSpec(tile_size=56, min_tiles=1, max_tiles=4, use_thumbnail=True, dynamic=True),
    }
    for field, value in changes.items():
        part = next(name for name, spec in parts.items() if field in type(spec).model_fields)
        parts[part] = parts[part].model_copy(update={field: value})
    return ModelSpec(
        layout="internvl_chat",
        architecture="SkyworkChatModel",
        image_token_id=7,
        template="r1v3",
        dtype="float32",
        **parts,
    )


def random_model(spec: ModelSpec) -> Model:
    torch.manual_seed(0)
    model = Model(spec)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model


def checkpoint_of(model: Model) -> MemoryCheckpoint:
    return MemoryCheckpoint(model.spec, {name: tensor.detach() for name, tensor in model.state_dict().items()})


@pytest.fixture(scope="module")
def model() -> Model:
    return random_model(tiny_spec())


@pytest.fixture(scope="module")
def checkpoint(model: Model) -> MemoryCheckpoint:
    return checkpoint_of(model)
