"""The convention of stored zero points is read from the quantized values, which overrule a wrong declaration."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import r1v_export
from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.checkpoint.quantized.zero_points import offset_of
from tests.checkpoint.conftest import edit_tensors, refusal
from tests.quantized_checkpoints import (
    GPTQ,
    Truth,
    pack_gptq,
    quantized_copy,
    random_linear,
    rounded_linear,
    set_quantization,
)

NANO = Path(r1v_export.__file__).parent / "nano" / "model"
FORMATS = {1: "gptq", 0: "gptq_v2"}


def normal(rows: int = 64, columns: int = 512) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(3))


WEIGHTS = {
    "normal": normal(),
    "heavy tails": normal().sign() * normal().abs() ** 3,
    "skewed, zero mean": torch.exp(normal()) - torch.exp(torch.tensor(0.5)),
    "a mean of its own in each row": normal() + 0.3 * normal(64, 1),
    "channels of very different size": normal() * torch.exp(2 * normal(1, 512)),
}


def shown(qweight: Tensor, zero: Tensor, offset: int) -> int | None:
    return offset_of(qweight.unflatten(1, (zero.shape[1], -1)), (zero - offset) & 15)


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("group", [32, 64, 128])
@pytest.mark.parametrize("name", WEIGHTS)
def test_a_rounded_weight_shows_its_own_convention_or_none(name, group, offset):
    qweight, _, zero = rounded_linear(WEIGHTS[name], group)
    expected = (offset, None) if "skewed" in name else (offset,)
    assert shown(qweight, zero, offset) in expected


@pytest.mark.parametrize("offset", [0, 1])
def test_random_values_and_weights_far_from_zero_show_nothing(offset):
    qweight, _, zero = random_linear(1, 64, 512)
    assert shown(qweight, zero, offset) is None
    for shift in (2.0, -2.0):
        qweight, _, zero = rounded_linear(normal() + shift, 32)
        assert shown(qweight, zero, offset) is None


@dataclass(frozen=True)
class Packed:
    """A checkpoint with r1v-nano's own weights in GPTQ: its folder, its configuration, and what was packed."""

    folder: Path
    stored: int
    config: dict[str, Any]
    truth: Truth


@pytest.fixture(
    scope="module", params=itertools.product((0, 1), (False, True), (32, 128, -1)), ids=lambda p: "-".join(map(str, p))
)
def packed(request, tmp_path_factory) -> Packed:
    """In either convention, with and without zero points, in groups of several sizes."""
    stored, symmetric, group = request.param
    folder, config = tmp_path_factory.mktemp("packed") / "model", GPTQ | {"sym": symmetric, "group_size": group}
    pack = partial(pack_gptq, offset=stored)
    return Packed(folder, stored, config, quantized_copy(NANO, folder, pack, config, symmetric, rounded=True))


@pytest.mark.parametrize("declared", ["gptq", "gptq_v2", None])
def test_r1v_nano_in_either_convention_is_read_right_whatever_is_declared(packed, declared):
    set_quantization(packed.folder, packed.config | {"checkpoint_format": declared})
    quantized, symmetric = Checkpoint.open(packed.folder).quantized, packed.config["sym"]
    for name, (qweight, _, zero) in packed.truth.items():
        decoded = quantized.linears[name].decode()
        assert torch.equal(decoded.qweight, (qweight - 8 * symmetric).to(torch.int8))
        if not symmetric:
            times = decoded.zero_point.shape[1] // zero.shape[1]
            assert torch.equal(decoded.zero_point, zero.repeat_interleave(times, 1).to(torch.int8))
    right = FORMATS[packed.stored]
    warned = [] if (declared or "gptq") == right else [f"read as {right}"]
    assert len(quantized.format.warnings) == len(warned)
    for warning in quantized.format.warnings:
        assert f"checkpoint_format: {right}" in warning
        assert warned[0] in warning


@pytest.mark.parametrize("stored", [0, 1])
@pytest.mark.parametrize("group", [32, 128])
def test_columns_in_act_order_show_their_convention_too(tmp_path, group, stored):
    config = GPTQ | {"desc_act": True, "group_size": group, "checkpoint_format": FORMATS[1 - stored]}
    truth = quantized_copy(NANO, tmp_path / "model", partial(pack_gptq, offset=stored), config, rounded=True)
    quantized = Checkpoint.open(tmp_path / "model").quantized
    assert f"read as {FORMATS[stored]}" in quantized.format.warnings[0]
    for name, (_, _, zero) in truth.items():
        assert torch.equal(quantized.linears[name].decode().zero_point, zero.to(torch.int8))


@pytest.mark.parametrize("declared", ["gptq", "gptq_v2"])
def test_where_the_values_show_nothing_the_declaration_is_taken(pristine: Path, tmp_path, declared):
    offset = {"gptq": 1, "gptq_v2": 0}[declared]
    config = GPTQ | {"checkpoint_format": declared}
    truth = quantized_copy(pristine, tmp_path / "model", partial(pack_gptq, offset=offset), config)
    quantized = Checkpoint.open(tmp_path / "model").quantized
    assert not quantized.format.warnings
    for name, (_, _, zero) in truth.items():
        assert torch.equal(quantized.linears[name].decode().zero_point, zero.to(torch.int8))


def test_symmetric_with_zero_points_of_its_own_is_refused_at_open_with_the_cure(pristine, tmp_path):
    quantized_copy(pristine, tmp_path / "model", pack_gptq, GPTQ | {"sym": True})
    error = refusal(tmp_path / "model")
    assert "not supported" in error.what
    assert "sym: false" in error.fix


@pytest.mark.parametrize("symmetric", [False, True])
def test_packed_tensors_of_no_linear_of_the_model_are_refused_as_missing_weights(tiny, symmetric):
    def rename(tensors):
        for name in [name for name in tensors if ".mlp.up_proj.weight" in name]:
            tensors[name.replace("up_proj.weight", "other.qweight")] = tensors.pop(name)

    edit_tensors(tiny / "model.safetensors", rename)
    set_quantization(tiny, GPTQ | {"sym": symmetric})
    assert "up_proj" in str(refusal(tiny))
