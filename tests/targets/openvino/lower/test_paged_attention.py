"""What the node `PagedAttention` reads: tokens as projections gave them, without a transpose."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from r1v_export.targets.openvino.boundary import PAGED_ATTENTION
from r1v_export.targets.openvino.lower import lower


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
    rotary = next(node for node in model.graph if node.op_type == "RotaryEmbedding")
    between = ir.node("Identity", [rotary.inputs[0]])
    model.graph.insert_before(rotary, between)
    rotary.replace_input_with(0, between.outputs[0])
    query = path(attends(model)[0].inputs[0])
    assert query[:4] == ["Reshape", "RotaryEmbedding", "Reshape", "Transpose"]
