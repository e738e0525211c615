"""Tiny models with weights large enough that a mistake shows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from r1v_export.checkpoint.spec import LanguageSpec, ModelSpec, ProjectorSpec, TilingSpec, VisionSpec

IMAGE_TOKEN_ID = 7

MakeSpec = Callable[..., ModelSpec]


@pytest.fixture(scope="session")
def make_spec() -> MakeSpec:
    """A tiny ModelSpec; keywords are fields of any of its parts."""

    def make(**changes: Any) -> ModelSpec:
        def part(cls: type, **fields: Any) -> Any:
            return cls(**{name: changes.pop(name, value) for name, value in fields.items()})

        vision = part(
            VisionSpec,
            hidden_size=32,
            num_heads=4,
            num_layers=2,
            intermediate_size=48,
            patch_size=4,
            image_size=16,
            norm="rms_norm",
            norm_eps=1e-6,
            qk_norm=True,
            qkv_bias=False,
        )
        projector = ProjectorSpec(
            shuffle=2,
            ps_version=changes.pop("ps_version", "v2"),
            in_features=4 * vision.hidden_size,
            hidden_size=40,
        )
        language = LanguageSpec(
            hidden_size=40,
            num_layers=3,
            num_heads=4,
            num_kv_heads=2,
            head_dim=10,
            intermediate_size=56,
            vocab_size=97,
            rms_norm_eps=changes.pop("rms_norm_eps", 1e-6),
            rope_theta=changes.pop("rope_theta", 1e4),
            max_position_embeddings=256,
            tie_word_embeddings=changes.pop("tie_word_embeddings", False),
        )
        tiling = part(TilingSpec, tile_size=16, min_tiles=1, max_tiles=12, use_thumbnail=True, dynamic=True)
        assert not changes, f"no such fields: {changes}"
        return ModelSpec(
            layout="internvl_chat",
            architecture="InternVLChatModel",
            vision=vision,
            projector=projector,
            language=language,
            tiling=tiling,
            image_token_id=IMAGE_TOKEN_ID,
            template="r1v3",
            dtype="float32",
        )

    return make


@pytest.fixture(scope="session")
def randomize() -> Callable[..., nn.Module]:
    """Fill every parameter with seeded noise: matrices of unit gain, vectors (norms, biases, LayerScale) near one."""

    def fill(module: nn.Module, seed: int = 0) -> nn.Module:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in module.parameters():
                noise = torch.randn(parameter.shape, generator=generator)
                if parameter.dim() == 1:
                    parameter.copy_(0.7 + 0.3 * noise)
                else:
                    parameter.copy_(noise / parameter[0].numel() ** 0.5)
        return module.eval().requires_grad_(False)

    return fill
