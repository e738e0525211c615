"""Checkpoints in AutoAWQ's and AutoGPTQ's layouts: every code is read as it was packed, and bad ones are refused."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.errors import CheckpointError
from tests.checkpoint.conftest import edit_tensors, refusal, set_key
from tests.quantized_checkpoints import (
    AWQ,
    GPTQ,
    GPTQ_8,
    GROUP,
    autogptq_weight,
    pack_awq,
    pack_gptq,
    quantized_copy,
    set_quantization,
)

WEIGHTS = "model.safetensors"
LINEAR = "language_model.model.layers.1.mlp.gate_proj"

FORMATS = {
    "awq": (pack_awq, AWQ, False),
    "gptq": (pack_gptq, GPTQ, False),
    "gptq_v2": (partial(pack_gptq, offset=0), GPTQ | {"checkpoint_format": "gptq_v2"}, False),
    "gptq symmetric": (pack_gptq, GPTQ | {"sym": True}, True),
}


@pytest.fixture
def awq(pristine: Path, tmp_path: Path) -> Path:
    quantized_copy(pristine, tmp_path / "awq", pack_awq, AWQ)
    return tmp_path / "awq"


@pytest.fixture
def gptq(pristine: Path, tmp_path: Path) -> Path:
    quantized_copy(pristine, tmp_path / "gptq", pack_gptq, GPTQ)
    return tmp_path / "gptq"


@pytest.mark.parametrize("name", FORMATS)
def test_quantized_values_scales_and_zero_points_are_read_bit_for_bit(pristine, tmp_path, name):
    pack, config, symmetric = FORMATS[name]
    truth = quantized_copy(pristine, tmp_path / "model", pack, config, symmetric)
    checkpoint = Checkpoint.open(tmp_path / "model")
    assert set(checkpoint.quantized.linears) == set(truth)
    for linear, (qweight, scale, zero) in truth.items():
        decoded = checkpoint.quantized.linears[linear].decode()
        assert torch.equal(decoded.scale, scale.float())
        if symmetric:
            assert torch.equal(decoded.qweight, (qweight - 8).to(torch.int8))
            assert decoded.zero_point is None
        else:
            assert torch.equal(decoded.qweight, qweight.to(torch.int8))
            assert torch.equal(decoded.zero_point, zero.to(torch.int8))


@pytest.mark.parametrize("name", FORMATS)
def test_a_quantized_weight_reads_dequantized(pristine, tmp_path, name):
    pack, config, symmetric = FORMATS[name]
    truth = quantized_copy(pristine, tmp_path / "model", pack, config, symmetric)
    checkpoint = Checkpoint.open(tmp_path / "model")
    qweight, scale, zero = truth[LINEAR]
    group = qweight.shape[1] // scale.shape[1]
    expected = (qweight - zero.repeat_interleave(group, 1)) * scale.float().repeat_interleave(group, 1)
    assert torch.equal(checkpoint.read(f"{LINEAR}.weight"), expected)
    info = checkpoint.tensors[f"{LINEAR}.weight"]
    assert (info.dtype, info.shape, info.nbytes) == (torch.float32, tuple(qweight.shape), 4 * qweight.numel())


def test_the_settings_may_stand_in_the_language_models_section(awq):
    set_quantization(awq, None)
    set_key(awq, "llm_config.quantization_config", AWQ)
    assert Checkpoint.open(awq).quantized.format.method == "awq"


def test_a_declaration_without_quantized_tensors_changes_nothing(tiny):
    set_quantization(tiny, AWQ)
    assert Checkpoint.open(tiny).quantized is None


@pytest.mark.parametrize("suffix", ["scales", "qzeros"])
def test_missing_scales_are_named(awq, suffix):
    edit_tensors(awq / WEIGHTS, lambda tensors: tensors.pop(f"{LINEAR}.{suffix}"))
    error = refusal(awq)
    assert error.what == "A quantized linear is incomplete."
    assert error.expected == f"{LINEAR}.{suffix}"


def test_a_linear_both_packed_and_in_16_bits_is_refused(awq):
    weight = torch.zeros(96, 64, dtype=torch.bfloat16)
    edit_tensors(awq / WEIGHTS, lambda tensors: tensors.update({f"{LINEAR}.weight": weight}))
    error = refusal(awq)
    assert error.what == "A linear is stored both quantized and unquantized."
    assert error.where == LINEAR
    assert "bfloat16" in error.found
    assert f"{LINEAR}.qweight" in error.found


def test_a_tensor_of_the_wrong_shape_or_dtype_is_refused_with_both(awq):
    edit_tensors(awq / WEIGHTS, lambda tensors: tensors.update({f"{LINEAR}.scales": torch.ones(4, 96)}))
    error = refusal(awq)
    assert f"{LINEAR}.scales" in error.where
    assert (error.expected, error.found) == ("float16 or bfloat16 or float32 [2, 96]", "float32 [4, 96]")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0, -1.0])
def test_a_scale_that_is_no_positive_number_is_refused_when_read(awq, value):
    def break_one(tensors):
        tensors[f"{LINEAR}.scales"][1, 5] = value

    edit_tensors(awq / WEIGHTS, break_one)
    with pytest.raises(CheckpointError, match="1 that are not") as caught:
        Checkpoint.open(awq).read(f"{LINEAR}.weight")
    assert LINEAR in caught.value.where


@pytest.mark.parametrize(("method", "named"), [("fp8", "'fp8'"), ("quark", "'quark'"), (None, "no quantization")])
def test_an_unknown_method_is_named_with_those_that_are_known(awq, method, named):
    set_quantization(awq, method and {"quant_method": method, "bits": 4})
    error = refusal(awq)
    assert error.what == "The checkpoint's quantized format is not supported."
    assert error.expected.startswith("quant_method awq, compressed-tensors, gptq, modelopt")
    assert named in error.found
    assert "--precision" in error.fix


@pytest.mark.parametrize(
    ("config", "key"),
    [
        (AWQ | {"version": "gemv"}, "version"),
        (AWQ | {"group_size": -1}, "group_size"),
        (GPTQ | {"checkpoint_format": "marlin"}, "checkpoint_format"),
        ({k: v for k, v in GPTQ.items() if k != "sym"}, "sym"),
    ],
)
def test_settings_that_are_not_supported_are_named(awq, config, key):
    set_quantization(awq, config)
    assert refusal(awq).where == f"config.json: quantization_config: {key}"


@pytest.mark.parametrize("symmetric", [False, True])
def test_columns_in_act_order_are_sorted_by_their_group_and_read_as_autogptq_does(pristine, tmp_path, symmetric):
    config = GPTQ | {"desc_act": True, "sym": symmetric}
    truth = quantized_copy(pristine, tmp_path / "model", pack_gptq, config, symmetric)
    checkpoint, stored = Checkpoint.open(tmp_path / "model"), load_file(tmp_path / "model" / WEIGHTS)
    for linear, (qweight, scale, _) in truth.items():
        decoded = checkpoint.quantized.linears[linear].decode()
        order, g_idx = decoded.input_order.long(), stored[f"{linear}.g_idx"].long()
        assert torch.equal(g_idx[order], torch.arange(len(order)) // GROUP)
        assert torch.equal(decoded.qweight, (qweight - 8 * symmetric)[:, order].to(torch.int8))
        assert torch.equal(decoded.scale, scale.float())
        expected = autogptq_weight(stored, linear).T
        np.testing.assert_array_equal(checkpoint.read(f"{linear}.weight").numpy(), expected)


def test_g_idx_of_neighbors_in_order_is_no_act_order(gptq):
    assert Checkpoint.open(gptq).quantized.linears[LINEAR].decode().input_order is None


@pytest.mark.parametrize("group", [1, -1, 7])
def test_groups_of_unequal_size_are_refused_at_open(gptq, group):
    edit_tensors(gptq / WEIGHTS, lambda tensors: tensors[f"{LINEAR}.g_idx"][:1].fill_(group))
    error = refusal(gptq)
    assert "not of one size" in error.what
    assert f"{LINEAR}.g_idx" in error.where
    assert error.expected == "each of 0 to 1 32 times"
    assert "quantized from" in error.fix


def test_act_order_whose_order_is_not_stored_is_refused(gptq):
    set_quantization(gptq, GPTQ | {"desc_act": True})
    Checkpoint.open(gptq)  # the groups of this one lie side by side
    edit_tensors(gptq / WEIGHTS, lambda tensors: tensors.pop(f"{LINEAR}.g_idx"))
    assert "without g_idx" in refusal(gptq).found


@pytest.mark.parametrize("group", [32, -1])
@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("act_order", [False, True])
def test_8_bits_are_read_as_autogptq_does_by_the_convention_of_their_zero_points(
    pristine, tmp_path, group, offset, act_order
):
    config = GPTQ_8 | {"group_size": group, "desc_act": act_order}
    truth = quantized_copy(pristine, tmp_path / "model", partial(pack_gptq, offset=offset, bits=8), config, True)
    checkpoint, stored = Checkpoint.open(tmp_path / "model"), load_file(tmp_path / "model" / WEIGHTS)
    assert len(checkpoint.quantized.format.warnings) == (offset == 0)  # nothing is declared, which means minus one
    for linear, (qweight, scale, _) in truth.items():
        decoded = checkpoint.quantized.linears[linear].decode()
        order = stored[f"{linear}.g_idx"].argsort(stable=True)
        assert torch.equal(decoded.qweight, (qweight - 128)[:, order].to(torch.int8))
        assert torch.equal(decoded.scale, scale.float() if group > 0 else scale[:, 0].float())
        expected = autogptq_weight(stored, linear, bits=8, offset=offset).T
        np.testing.assert_array_equal(checkpoint.read(f"{linear}.weight").numpy(), expected)


def test_8_bits_with_zero_points_of_their_own_are_refused_at_open(pristine, tmp_path):
    pack = partial(pack_gptq, bits=8)
    quantized_copy(pristine, tmp_path / "model", pack, GPTQ_8 | {"sym": False})
    assert refusal(tmp_path / "model").what == "GPTQ with 8 bits and zero points is not supported."
    set_quantization(tmp_path / "model", GPTQ_8)
    error = refusal(tmp_path / "model")
    assert error.expected == "zero points of 128, stored as 127 (gptq) or 128 (gptq_v2)"
    assert "quantized from" in error.fix


@pytest.mark.parametrize(("config", "method", "bits"), [(AWQ, "AWQ", 8), (AWQ, "AWQ", 3), (GPTQ, "GPTQ", 3)])
def test_other_numbers_of_bits_are_refused_at_open_as_not_supported(awq, config, method, bits):
    set_quantization(awq, config | {"bits": bits})
    error = refusal(awq)
    assert error.what == f"{method} with {bits} bits is not supported."
    assert "config.json against" not in error.fix


def test_one_scale_for_each_output_feature_is_read_as_groups_with_equal_scales(pristine, tmp_path):
    truth = quantized_copy(pristine, tmp_path / "model", pack_gptq, GPTQ | {"group_size": -1})
    checkpoint = Checkpoint.open(tmp_path / "model")
    qweight, scale, zero = truth[LINEAR]
    assert scale.shape[1] == 1
    assert torch.equal(checkpoint.read(f"{LINEAR}.weight"), (qweight - zero) * scale.float())
    assert checkpoint.quantized.linears[LINEAR].decode().scale.shape == (96, 1)  # of 64 inputs
    down = checkpoint.quantized.linears[LINEAR.replace("gate", "down")]
    assert (down.shape, down.layout.group_size) == ((64, 96), 32)


def test_a_group_size_that_is_not_the_tensors_is_refused(gptq):
    set_quantization(gptq, GPTQ | {"group_size": 64})
    assert "[1, " in refusal(gptq).expected
