"""Tiny models with weights large enough that a mistake shows."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import InternVLConfig, InternVLForConditionalGeneration, InternVLVisionConfig, Qwen2Config

from r1v_export.model_spec import ModelSpec
from r1v_export.reference.model import Model
from tests.tiny_models import tiny_spec

MakeSpec = Callable[..., ModelSpec]

SIZES: dict[str, Any] = {
    "vision": {"hidden_size": 32, "num_heads": 4, "intermediate_size": 48, "patch_size": 4, "image_size": 16},
    "projector": {"in_features": 128, "hidden_size": 40},
    "language": {
        "hidden_size": 40,
        "num_layers": 3,
        "head_dim": 10,
        "intermediate_size": 56,
        "vocab_size": 97,
        "rope_theta": 1e4,
    },
    "tiling": {"tile_size": 16, "max_tiles": 12},
}
"""No two alike where a mistake could hide."""


@pytest.fixture(scope="session")
def make_spec() -> MakeSpec:
    """A tiny ModelSpec; keywords are fields of any of its parts."""
    return partial(tiny_spec, **SIZES)


@pytest.fixture(scope="session")
def randomize() -> Callable[..., nn.Module]:
    """Fill every parameter with seeded noise: matrices of gain 1.5, biases small, norms and LayerScale near one."""

    def fill(module: nn.Module, seed: int = 0) -> nn.Module:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                noise = torch.randn(parameter.shape, generator=generator)
                if parameter.dim() == 1:
                    parameter.copy_(0.2 * noise if name.endswith("bias") else 0.8 + 0.2 * noise)
                else:
                    parameter.copy_(1.5 * noise / parameter[0].numel() ** 0.5)
        return module.eval().requires_grad_(False)

    return fill


# Ours to transformers' names, within one block.
BLOCK_NAMES = {
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "attn.q_norm": "attention.q_norm",
    "attn.k_norm": "attention.k_norm",
    "attn.proj": "attention.projection_layer",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
    "ls1": "lambda_1",
    "ls2": "lambda_2",
}
_TOWER, _PROJECTOR = "model.vision_tower", "model.multi_modal_projector"
OUTER_NAMES = {
    "vision_model.embeddings.class_embedding": f"{_TOWER}.embeddings.cls_token",
    "vision_model.embeddings.position_embedding": f"{_TOWER}.embeddings.position_embeddings",
    "vision_model.embeddings.patch_embedding.weight": f"{_TOWER}.embeddings.patch_embeddings.projection.weight",
    "vision_model.embeddings.patch_embedding.bias": f"{_TOWER}.embeddings.patch_embeddings.projection.bias",
    "mlp1.0.weight": f"{_PROJECTOR}.layer_norm.weight",
    "mlp1.0.bias": f"{_PROJECTOR}.layer_norm.bias",
    "mlp1.1.weight": f"{_PROJECTOR}.linear_1.weight",
    "mlp1.1.bias": f"{_PROJECTOR}.linear_1.bias",
    "mlp1.3.weight": f"{_PROJECTOR}.linear_2.weight",
    "mlp1.3.bias": f"{_PROJECTOR}.linear_2.bias",
}


def native_weights(model: Model) -> dict[str, Tensor]:
    """Our weights under the names of transformers' native layout, which has q, k and v apart."""
    native = {}
    for name, tensor in model.state_dict().items():
        if name in OUTER_NAMES:
            native[OUTER_NAMES[name]] = tensor
        elif name.startswith("vision_model.encoder.layers."):
            layer, rest = name.removeprefix("vision_model.encoder.layers.").split(".", 1)
            target = f"{_TOWER}.encoder.layer.{layer}"
            if rest.startswith("attn.qkv."):
                for letter, part in zip("qkv", tensor.chunk(3), strict=True):
                    native[f"{target}.attention.{letter}_proj.{rest.removeprefix('attn.qkv.')}"] = part
            else:
                ours = next(prefix for prefix in BLOCK_NAMES if rest == prefix or rest.startswith(prefix + "."))
                native[f"{target}.{BLOCK_NAMES[ours]}{rest.removeprefix(ours)}"] = tensor
        else:
            outer, inner = "language_model.lm_head.", "language_model.model."
            native[name.replace(outer, "lm_head.").replace(inner, "model.language_model.")] = tensor
    return native


def native_config(spec: ModelSpec) -> InternVLConfig:
    vision, language = spec.vision, spec.language
    return InternVLConfig(
        vision_config=InternVLVisionConfig(
            hidden_size=vision.hidden_size,
            num_hidden_layers=vision.num_layers,
            num_attention_heads=vision.num_heads,
            intermediate_size=vision.intermediate_size,
            image_size=vision.image_size,
            patch_size=vision.patch_size,
            norm_type=vision.norm,
            layer_norm_eps=vision.norm_eps,
            use_qk_norm=vision.qk_norm,
            attention_bias=vision.qkv_bias,
        ),
        text_config=Qwen2Config(
            hidden_size=language.hidden_size,
            num_hidden_layers=language.num_layers,
            num_attention_heads=language.num_heads,
            num_key_value_heads=language.num_kv_heads,
            intermediate_size=language.intermediate_size,
            vocab_size=language.vocab_size,
            rms_norm_eps=language.rms_norm_eps,
            rope_parameters={"rope_type": "default", "rope_theta": language.rope_theta},
            max_position_embeddings=language.max_position_embeddings,
            bos_token_id=None,
            eos_token_id=None,
        ),
        image_token_id=spec.image_token_id,
        image_seq_length=spec.tokens_per_tile,
        tie_word_embeddings=False,
    )


@pytest.fixture(scope="session")
def transformers_twin() -> Callable[[Model], InternVLForConditionalGeneration]:
    """transformers' own implementation with the weights of one of our models."""

    def make(model: Model) -> InternVLForConditionalGeneration:
        twin = InternVLForConditionalGeneration(native_config(model.spec))
        twin.load_state_dict(native_weights(model), strict=True)
        return twin.eval()

    return make
