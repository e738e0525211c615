"""The decoder without logits: this needs no OpenVINO."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from r1v_export import contract
from r1v_export.targets.openvino.boundary import cache_pairs
from r1v_export.targets.openvino.lower import lower


@pytest.fixture
def lowered(built) -> ir.Model:
    model = ir.load(built.graphs / "decoder.onnx")
    lower(model, logits=False)
    return model


def test_keys_and_values_are_all_that_is_left(lowered, built):
    assert [value.name for value in lowered.graph.outputs] == [new for _, new in cache_pairs(built.spec.sizes.layers)]
    assert contract.LOGITS_INDEX not in {value.name for value in lowered.graph.inputs}


def test_the_head_and_the_last_mlp_are_gone(lowered, built):
    whole = ir.load(built.graphs / "decoder.onnx")
    lower(whole)
    softmax = [sum(node.op_type == "Softmax" for node in model.graph) for model in (whole, lowered)]
    assert softmax == [built.spec.sizes.layers, built.spec.sizes.layers - 1]
    weights = [{name for name, value in model.graph.initializers.items()} for model in (whole, lowered)]
    assert weights[1] < weights[0]
    last = f"layers.{built.spec.sizes.layers - 1}."
    assert any("mlp" in name and last in name for name in weights[0])
    assert not any("mlp" in name and last in name for name in weights[1])


def test_a_graph_without_logits_stays_as_it_is(built):
    one, other = (ir.load(built.graphs / "vision.onnx") for _ in range(2))
    lower(one)
    lower(other, logits=False)
    assert [node.op_type for node in one.graph] == [node.op_type for node in other.graph]
