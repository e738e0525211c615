from __future__ import annotations

import onnx_ir as ir
import pytest
from onnx_ir.passes.common import RemoveUnusedNodesPass

from r1v_export.targets.onnxruntime.lower.grouped_query_attention import GroupQueryAttention
from r1v_export.targets.onnxruntime.lower.packed_projections import PackedProjections


@pytest.fixture
def decoder(r1v) -> ir.Model:
    model = ir.load(r1v.graphs / "decoder.onnx")
    GroupQueryAttention()(model)
    return model


def test_each_layer_has_one_projection_for_query_key_and_value(decoder, r1v):
    before = sum(node.op_type == "MatMul" for node in decoder.graph)
    ir.passes.Sequential(PackedProjections(), RemoveUnusedNodesPass())(decoder)
    layers = r1v.spec.language.num_layers
    assert sum(node.op_type == "MatMul" for node in decoder.graph) == before - 2 * layers
    attentions = [node for node in decoder.graph if node.op_type == "GroupQueryAttention"]
    assert [node.inputs[1:3] for node in attentions] == [(None, None)] * layers


def test_what_is_concatenated_are_the_published_weights_in_order(decoder):
    PackedProjections()(decoder)
    weights, biases = [node for node in decoder.graph if node.op_type == "Concat"][:2]
    prefix = "language_model.model.layers.0.self_attn."
    assert [value.name for value in weights.inputs] == [f"{prefix}{p}_proj.weight.T" for p in "qkv"]
    assert [value.name for value in biases.inputs] == [f"{prefix}{p}_proj.bias" for p in "qkv"]


def test_quantized_projections_stay_as_they_are_also_where_each_gathers_its_input_in_its_own_order(decoder):
    graph = decoder.graph
    for attention in [node for node in graph if node.op_type == "GroupQueryAttention"]:
        for value in attention.inputs[:3]:
            matmul = value.producer().inputs[0].producer()
            source, weight = matmul.inputs
            for index, changed in enumerate((ir.node("Gather", [source, graph.inputs[0]]), ir.node("Cast", [weight]))):
                graph.insert_before(matmul, changed)
                matmul.replace_input_with(index, changed.outputs[0])
    assert not PackedProjections()(decoder).modified


def test_projections_of_different_inputs_are_refused(decoder):
    attention = next(node for node in decoder.graph if node.op_type == "GroupQueryAttention")
    matmul = attention.inputs[1].producer().inputs[0].producer()
    matmul.replace_input_with(0, decoder.graph.inputs[0])
    with pytest.raises(ir.passes.PreconditionError, match="one input"):
        PackedProjections()(decoder)
