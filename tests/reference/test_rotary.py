"""Rotary tables under every scaling, against transformers' own."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from transformers import Qwen2Config
from transformers.models.qwen2.modeling_qwen2 import Qwen2RotaryEmbedding

from r1v_export.checkpoint.config_defaults import QWEN2
from r1v_export.checkpoint.config_section import Section
from r1v_export.checkpoint.language_config import read_language
from r1v_export.errors import CapabilityError
from r1v_export.reference.language import rotary_tables

POSITIONS = 512
SIZES = {
    "architectures": ["Qwen2ForCausalLM"],
    "hidden_size": 256,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": POSITIONS,
}
SCALINGS: list[dict[str, Any] | None] = [
    None,
    {"type": "default"},
    {"type": "linear", "factor": 2.0},
    {"rope_type": "linear", "factor": 8},
    {"type": "dynamic", "factor": 2.0},
    {"rope_type": "dynamic", "type": "dynamic", "factor": 4.0},
    {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128},
    {"type": "yarn", "factor": 4.0},
    {"type": "yarn", "factor": 1.0, "original_max_position_embeddings": 64},
    {"type": "yarn", "factor": 40, "original_max_position_embeddings": 64, "beta_fast": 16, "beta_slow": 2},
    {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128, "attention_factor": 0.75},
    {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128, "mscale": 0.707, "mscale_all_dim": 1.0},
    {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128, "mscale": 0.707},
    {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128, "truncate": False},
    {"type": "yarn", "factor": None, "original_max_position_embeddings": 128},
]


def spec_of(scaling: dict[str, Any] | None, theta: float = 1e6):
    config = SIZES | {"rope_theta": theta, "rope_scaling": scaling}
    return read_language(Section(config, "config.json: llm_config", QWEN2), tied=False)


def oracle(scaling: dict[str, Any] | None, theta: float) -> tuple[torch.Tensor, torch.Tensor]:
    config = Qwen2Config(**SIZES, rope_parameters={"rope_type": "default"} | (scaling or {}) | {"rope_theta": theta})
    if scaling is not None:
        config.rope_parameters["rope_type"] = scaling.get("rope_type") or scaling["type"]
    cos, sin = Qwen2RotaryEmbedding(config)(torch.zeros(1), torch.arange(POSITIONS)[None])
    return cos[0], sin[0]


@pytest.mark.parametrize(("scaling", "theta"), list(itertools.product(SCALINGS, [1e4, 1e6])))
def test_the_tables_are_those_of_transformers(scaling, theta):
    expected = oracle(scaling, theta)
    for ours, theirs in zip(rotary_tables(spec_of(scaling, theta), POSITIONS), expected, strict=True):
        assert torch.equal(torch.cat((ours, ours), dim=-1), theirs)


def test_yarn_extends_the_context_by_its_factor():
    scaling = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": POSITIONS}
    assert spec_of(scaling).max_position_embeddings == 4 * POSITIONS
    assert spec_of({"type": "linear", "factor": 4.0}).max_position_embeddings == POSITIONS


def test_dynamic_scaling_has_no_table_beyond_the_trained_context():
    with pytest.raises(CapabilityError, match="at most 512 positions"):
        rotary_tables(spec_of({"type": "dynamic", "factor": 2.0}), POSITIONS + 1)


def test_a_cosine_that_the_math_library_gets_wrong_is_corrected(monkeypatch):
    expected = rotary_tables(spec_of(None), POSITIONS)
    cosine = torch.Tensor.cos

    def imprecise(x):
        values = cosine(x)
        if x.dtype == torch.float32:
            values[: POSITIONS // 2] += 1.5e-4
        return values

    monkeypatch.setattr(torch.Tensor, "cos", imprecise)
    found = rotary_tables(spec_of(None), POSITIONS)
    torch.testing.assert_close(found.cos, expected.cos, rtol=0, atol=2**-23)
    assert torch.equal(found.cos[POSITIONS // 2 :], expected.cos[POSITIONS // 2 :])
