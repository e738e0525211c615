"""Layouts of quantized values: each byte is where the graph or the checkpoint looks for it."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.checkpoint.tensor_file import read_header
from r1v_export.quantization.artifact.qweight_layout import (
    CALIBRATION,
    GRAPH,
    PACKED,
    PLAIN,
    UNIFIED,
    QweightLayout,
    Values,
    layout_of,
)
from r1v_export.quantization.number_formats import QWEIGHT_DTYPES, RANGES, WeightType
from r1v_export.quantization.quantized_linear import QuantizedLinear

LINEAR = "language_model.model.layers.0.mlp.up_proj"
LAYOUTS = {"calibration": CALIBRATION, "graph": GRAPH, "unified": UNIFIED, "packed": PACKED, "plain": PLAIN}
SHAPE = (6, 20)


def linear(kind: WeightType, input_order: bool = False) -> QuantizedLinear:
    random = torch.Generator().manual_seed(1)
    low, high = (int(bound) for bound in RANGES[kind])
    qweight = torch.randint(low, high + 1, SHAPE, generator=random).to(QWEIGHT_DTYPES[kind])
    order = torch.randperm(SHAPE[1], generator=random).int() if input_order else None
    return QuantizedLinear(qweight, kind, torch.ones(SHAPE[0]), input_order=order)


@pytest.mark.parametrize("input_order", [False, True])
@pytest.mark.parametrize("kind", get_args(WeightType))
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_what_is_encoded_has_the_shape_that_is_said_and_is_decoded(
    layout: QweightLayout, kind: WeightType, input_order: bool
) -> None:
    made = linear(kind, input_order)
    values = Values(SHAPE, kind, made.input_order)
    expected = layout.stored(values)
    if expected is None:
        assert layout in (UNIFIED, PACKED, PLAIN)
        return
    stored = layout.encode(made)
    assert (stored.dtype, tuple(stored.shape)) == expected
    found = layout.decode(stored, values)
    assert found.is_contiguous()
    assert torch.equal(found.view(torch.uint8), made.qweight.view(torch.uint8))


def four_bit_values(stored: torch.Tensor) -> np.ndarray:
    """The 4-bit values of bytes in file order, the low half of each first."""
    raw = np.frombuffer(stored.contiguous().view(torch.uint8).numpy().tobytes(), np.uint8)
    return np.stack([raw & 0xF, raw >> 4], axis=1).reshape(-1)


def test_each_layout_has_its_own_order_of_4_bit_values() -> None:
    made = linear("int4")
    values_OI = made.qweight.numpy() & 0xF
    assert np.array_equal(four_bit_values(CALIBRATION.encode(made)), values_OI.reshape(-1))
    assert np.array_equal(four_bit_values(GRAPH.encode(made)), values_OI.T.reshape(-1))
    pairs_of_rows = values_OI.reshape(SHAPE[0] // 2, 2, SHAPE[1]).transpose(0, 2, 1)
    assert np.array_equal(four_bit_values(UNIFIED.encode(made)), pairs_of_rows.reshape(-1))
    words_OI = four_bit_values(PACKED.encode(made)).reshape(SHAPE[0], -1)
    assert np.array_equal(words_OI[:, : SHAPE[1]], made.qweight.numpy() + 8)
    assert words_OI.shape[1] == 24, "whole words of eight"


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_the_layout_of_a_file_is_known_by_its_names(
    layout: QweightLayout, synth_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    spec = synth_checkpoint.spec
    made = layout.tensors(LINEAR, linear("int8" if layout is PLAIN else "int4"), spec)
    save_file({name: tensor.contiguous() for name, tensor in made.items()}, tmp_path / "file")
    assert layout_of(LINEAR, read_header(tmp_path / "file"), spec) is layout
    assert layout_of(LINEAR.replace("up", "down"), read_header(tmp_path / "file"), spec) is None


def test_a_weight_that_an_import_rewrote_is_no_quantized_value(synth_checkpoint: Checkpoint, tmp_path: Path) -> None:
    spec = synth_checkpoint.spec
    save_file({name: torch.ones(SHAPE) for name in UNIFIED.names(LINEAR, spec)}, tmp_path / "file")
    assert layout_of(LINEAR, read_header(tmp_path / "file"), spec) is None


def test_values_of_another_shape_are_named(tmp_path: Path, synth_checkpoint: Checkpoint) -> None:
    save_file({f"{LINEAR}.qweight": torch.ones(6, 9, dtype=torch.uint8)}, tmp_path / "file")
    found = read_header(tmp_path / "file")[f"{LINEAR}.qweight"]
    problem = CALIBRATION.problem([found], Values(SHAPE, "int4"))
    assert problem == ("quantized values torch.uint8 (6, 10)", "torch.uint8 (6, 9)")
    assert UNIFIED.problem([found], Values(SHAPE, "uint4"))
