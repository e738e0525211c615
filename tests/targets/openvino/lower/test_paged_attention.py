"""What the node `PagedAttention` reads: tokens as projections gave them, without a transpose."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from r1v_export.contract import POSITION_IDS
from r1v_export.targets.openvino.boundary import PAGED_ATTENTION
from r1v_export.targets.openvino.lower import lower
from tests.targets.onnxruntime.runtime.test_engine import normal, prompts, walk
from tests.targets.openvino.conftest import NEEDS_OPENVINO
from tests.targets.openvino.runtime.test_paged_decoder import open_paged


def attends(model: ir.Model) -> list[ir.Node]:
    lower(model, paged=True)
    return [node for node in model.graph if node.op_type == PAGED_ATTENTION]


def path(value: ir.Value) -> list[str]:
    """Operators from a value up to the projection that it comes of."""
    found = []
    while found[-1:] not in (["MatMul"], ["Add"]):
        node = value.producer()
        found.append(node.op_type)
        value = node.inputs[0]
    return found[:-1]


def first_rotary(model: ir.Model) -> ir.Node:
    return next(node for node in model.graph if node.op_type == "RotaryEmbedding")


def put_identity(model, node, index):
    between = ir.node("Identity", [node.inputs[index]])
    model.graph.insert_before(node, between)
    node.replace_input_with(index, between.outputs[0])


@pytest.fixture
def model(built) -> ir.Model:
    return ir.load(built.graphs / "decoder.onnx")


def test_nothing_is_transposed_between_projections_and_attention(model, built) -> None:
    layers = attends(model)
    assert len(layers) == built.spec.sizes.layers
    for layer in layers:
        query, key, value = map(path, layer.inputs[:3])
        assert query == key == ["Reshape", "RotaryEmbedding", "Reshape"]
        assert value == ["Reshape"]


def test_heads_that_come_of_something_else_are_transposed(model) -> None:
    put_identity(model, first_rotary(model), 0)
    query = path(attends(model)[0].inputs[0])
    assert query[:4] == ["Reshape", "RotaryEmbedding", "Reshape", "Transpose"]


def test_heads_in_another_order_are_transposed(model) -> None:
    transpose = first_rotary(model).inputs[0].producer()
    transpose.attributes["perm"] = ir.AttrInt64s("perm", [0, 2, 3, 1])
    query = path(attends(model)[0].inputs[0])
    assert query[:4] == ["Reshape", "RotaryEmbedding", "Reshape", "Transpose"]


def test_each_rotation_keeps_its_attributes_its_tables_and_its_positions(model) -> None:
    rotary = first_rotary(model)
    rotary.attributes["interleaved"] = ir.AttrInt64("interleaved", 1)
    positions = ir.Value(name="positions of its own", shape=ir.Shape([1, None]), type=ir.TensorType(ir.DataType.INT64))
    model.graph.inputs.append(positions)
    rotary.replace_input_with(3, positions)
    tables = rotary.inputs[1:3]
    query, key = (attends(model)[0].inputs[index].producer().inputs[0].producer() for index in range(2))
    assert (query.attributes.get_int("interleaved", 0), key.attributes.get_int("interleaved", 0)) == (1, 0)
    assert query.inputs[1:3] == key.inputs[1:3] == tables
    assert [each.inputs[3].producer().inputs[0].name for each in (query, key)] == [positions.name, POSITION_IDS]
    for each in (query, key):
        by_token = each.inputs[3].producer()
        assert by_token.op_type == "Reshape"
        assert by_token.inputs[1].const_value.numpy().tolist() == [-1, 1]


def with_transposes(model):
    """Let heads of queries, keys and values not come of projections, as far as the lowering sees."""
    for attention in [each for each in model.graph if each.op_type == "Attention" and len(each.inputs) == 7]:
        query, (key, value) = attention.inputs[0].producer(), (each.producer() for each in attention.inputs[1:3])
        assert (query.op_type, value.inputs[1].producer().op_type) == ("RotaryEmbedding", "Transpose")
        put_identity(model, query, 0)  # behind the transpose
        put_identity(model, key, 1)  # behind the rotation
        put_identity(model, value.inputs[1].producer(), 0)  # behind the split into heads


@NEEDS_OPENVINO
@pytest.mark.parametrize(("matmul", "int4_inputs"), [("float32", None), ("bfloat16", "int8")])
def test_without_transposes_the_bits_are_the_same(built, tmp_path, monkeypatch, matmul, int4_inputs):
    runtime = "r1v_export.targets.openvino.runtime"
    monkeypatch.setattr(f"{runtime}.paged_decoder.PROMPT_TOKENS", 8)
    monkeypatch.setattr(f"{runtime}.model.has_bfloat16_tiles", lambda: True)
    prompts_SE = prompts(built.spec, [12, 3, 7])
    steps = [normal(3, 1, built.spec.language.hidden_size) for _ in range(3)]
    found = []
    for name, change in (("without", lambda model: None), ("with", with_transposes)):
        (tmp_path / name).mkdir()
        found.append(walk(open_paged(built, tmp_path / name, matmul, int4_inputs, change), prompts_SE, steps))
    for without, transposed in zip(*found, strict=True):
        np.testing.assert_array_equal(without, transposed)
