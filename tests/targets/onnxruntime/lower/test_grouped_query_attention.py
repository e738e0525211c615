from __future__ import annotations

from collections import Counter

import onnx_ir as ir
import pytest
from onnx_ir.passes.common import RemoveUnusedNodesPass

from r1v_export import contract
from r1v_export.targets.onnxruntime.lower.grouped_query_attention import GroupQueryAttention
from tests.targets.onnxruntime.lower.graphs import rounded


@pytest.fixture
def decoder(r1v) -> ir.Model:
    return ir.load(r1v.graphs / "decoder.onnx")


def test_each_layer_has_one_attention_node_and_nothing_of_the_standard_one_is_left(decoder, r1v):
    before = Counter(node.op_type for node in decoder.graph)
    ir.passes.Sequential(GroupQueryAttention(), RemoveUnusedNodesPass())(decoder)
    after = Counter(node.op_type for node in decoder.graph)
    layers = r1v.spec.language.num_layers
    assert before["Attention"] == after["GroupQueryAttention"] == layers
    gone = ("Attention", "TensorScatter", "RotaryEmbedding", "Transpose", "Reshape")
    assert [after[op_type] for op_type in gone] == [0] * len(gone)
    assert after["MatMul"] == before["MatMul"]


def test_heads_come_from_the_cache_and_rotary_tables_are_kept(decoder, r1v):
    GroupQueryAttention()(decoder)
    for node in decoder.graph:
        if node.op_type == "GroupQueryAttention":
            attributes = {name: attribute.value for name, attribute in node.attributes.items()}
            language = r1v.spec.language
            assert attributes == {
                "num_heads": language.num_heads,
                "kv_num_heads": language.num_kv_heads,
                "do_rotary": 1,
            }
            assert [value.shape[0] for value in node.inputs[-2:]] == [language.max_position_embeddings] * 2


def test_the_cache_goes_from_past_to_present_of_its_layer(decoder):
    GroupQueryAttention()(decoder)
    nodes = [node for node in decoder.graph if node.op_type == "GroupQueryAttention"]
    for layer, node in enumerate(nodes):
        assert [value.name for value in node.inputs[3:5]] == [contract.past_key(layer), contract.past_value(layer)]
        assert [value.name for value in node.outputs[1:]] == [
            contract.present_key(layer),
            contract.present_value(layer),
        ]


def test_a_graph_without_cached_attention_is_left_alone(r1v):
    vision = ir.load(r1v.graphs / "vision.onnx")
    before = [node.op_type for node in vision.graph]
    assert not GroupQueryAttention()(vision).modified
    assert [node.op_type for node in vision.graph] == before


def test_an_int8_cache_is_the_kernels_own_with_the_scales_of_the_calibration(decoder, r1v):
    layers = r1v.spec.language.num_layers
    model = rounded(decoder, layers, "int8")
    ir.passes.Sequential(GroupQueryAttention(int8_cache=True), RemoveUnusedNodesPass())(model)
    operators = Counter(node.op_type for node in model.graph)
    assert operators["GroupQueryAttention"] == layers
    assert [operators[gone] for gone in ("TensorScatter", "QuantizeLinear", "DequantizeLinear")] == [0, 0, 0]
    for layer, node in enumerate(node for node in model.graph if node.op_type == "GroupQueryAttention"):
        assert [value.name for value in node.inputs[-2:]] == [
            f"layers.{layer}.key.scale",
            f"layers.{layer}.value.scale",
        ]
        assert node.attributes["k_quant_type"].value == node.attributes["v_quant_type"].value == "PER_TENSOR"
    caches = {name for pair in contract.cache_pairs(layers) for name in pair}
    types = {value.name: value.dtype for value in (*model.graph.inputs, *model.graph.outputs)}
    assert {types[name] for name in caches} == {ir.DataType.INT8}
    assert types[contract.LOGITS] == ir.DataType.FLOAT


@pytest.mark.parametrize(("kind", "int8_cache"), [("fp8", True), ("int8", False)])
def test_a_cache_that_the_kernel_does_not_have_stays_with_the_standard_operators(decoder, r1v, kind, int8_cache):
    model = rounded(decoder, r1v.spec.language.num_layers, kind)
    assert not GroupQueryAttention(int8_cache=int8_cache)(model).modified
