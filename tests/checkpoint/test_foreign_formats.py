"""Quantized formats of other libraries are refused by their names, with what can be done."""

from __future__ import annotations

import pytest
import torch

from r1v_export.checkpoint.checkpoint import Checkpoint
from tests.checkpoint.conftest import edit_tensors, refusal, set_key

LINEAR = "language_model.model.layers.0.self_attn.q_proj"
WEIGHTS = "model.safetensors"


@pytest.mark.parametrize(
    "suffixes",
    [
        ("weight.absmax", "weight.quant_map", "weight.quant_state.bitsandbytes__nf4"),
        ("weight.absmax", "weight.nested_absmax", "weight.nested_quant_map", "weight.quant_state.bitsandbytes__fp4"),
        ("SCB", "weight_format"),
    ],
    ids=["nf4", "double quantization", "int8"],
)
def test_bitsandbytes_is_named(tiny, suffixes):
    edit_tensors(tiny / WEIGHTS, lambda tensors: tensors.update({f"{LINEAR}.{s}": torch.ones(4) for s in suffixes}))
    error = refusal(tiny)
    assert error.what == "Checkpoints quantized by bitsandbytes are not read."
    assert all(f"{LINEAR}.{suffix}" in error.found for suffix in suffixes)
    assert "dequantize()" in error.fix


def test_a_declaration_without_such_tensors_is_no_quantized_checkpoint(tiny):
    set_key(tiny, "quantization_config", {"quant_method": "bitsandbytes", "load_in_8bit": True})
    assert Checkpoint.open(tiny).quantized is None
