from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx_ir.passes.common import RemoveUnusedNodesPass

from r1v_export.targets.onnxruntime.lower.grouped_query_attention import GroupQueryAttention
from r1v_export.targets.onnxruntime.lower.packed_projections import PackedProjections
from tests.targets.onnxruntime.lower.graphs import run


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


def quantized(decoder: ir.Model, groups: int, zero_points: bool = False, int8: bool = False) -> ir.Model:
    """The projections of its attention with weights of 4 bits, scales of so many groups of their inputs."""
    random, kind = np.random.default_rng(0), ir.DataType.INT8 if int8 else ir.DataType.INT4
    for attention in [node for node in decoder.graph if node.op_type == "GroupQueryAttention"]:
        for value in attention.inputs[:3]:
            matmul = value.producer().inputs[0].producer()
            weight = matmul.inputs[1]
            depth, columns = weight.shape
            tensors = {
                "qweight": ir.tensor(random.integers(-8, 8, (depth, columns)).astype(np.int8)),
                "scale": ir.tensor(random.uniform(0.01, 0.02, (groups, columns)).astype(np.float32)),
            }
            if zero_points:
                tensors["zero_point"] = ir.tensor(random.integers(-8, 8, (groups, columns)).astype(np.int8))
            made = []
            for name, tensor in tensors.items():
                if name != "scale":
                    tensor = ir.tensor(tensor.numpy().astype(kind.numpy()), dtype=kind)
                tensor.name = f"{weight.name}.{name}"
                made.append(
                    ir.Value(name=tensor.name, const_value=tensor, shape=tensor.shape, type=ir.TensorType(tensor.dtype))
                )
                decoder.graph.register_initializer(made[-1])
            dequantize = ir.node("DequantizeLinear", made, {"axis": 0, "block_size": depth // groups})
            decoder.graph.insert_before(matmul, dequantize)
            matmul.replace_input_with(1, dequantize.outputs[0])
    return decoder


def optimized(decoder: ir.Model, path) -> list[str]:
    """Operators of the graph as ONNX Runtime computes it."""
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(path)
    options.log_severity_level = 4
    ort.InferenceSession(ir.to_proto(decoder).SerializeToString(), options, providers=["CPUExecutionProvider"])
    return [node.op_type for node in onnx.load(path).graph.node]


def feeds(decoder: ir.Model) -> dict[str, np.ndarray]:
    """Three tokens into an empty cache."""
    sizes = {"batch": 1, "seq": 3, "logit_positions": 1, "capacity": 8}
    found = {}
    for value in decoder.graph.inputs:
        shape = [size if isinstance(size, int) else sizes[str(size)] for size in value.shape]
        found[value.name] = np.zeros(shape, value.dtype.numpy())
    found["inputs_embeds"] = np.random.default_rng(1).standard_normal(found["inputs_embeds"].shape, np.float32)
    return found | {"position_ids": np.arange(3)[None], "cache_length": np.array([3]), "logits_index": np.array([[2]])}


@pytest.mark.parametrize("zero_points", [False, True])
def test_four_bits_become_one_fused_product_with_the_same_numbers(decoder, r1v, tmp_path, zero_points):
    groups = r1v.spec.sizes.hidden // 16
    model = quantized(ir.load(materialized(decoder, r1v, tmp_path)), groups, zero_points)
    RemoveUnusedNodesPass()(model)
    inputs = feeds(model)
    expected = run(model, **inputs)
    before = optimized(model, tmp_path / "before.onnx")
    assert ir.passes.Sequential(PackedProjections(four_bits=True), RemoveUnusedNodesPass())(model).modified
    after = optimized(model, tmp_path / "after.onnx")
    layers = r1v.spec.language.num_layers
    assert [kinds.count("MatMulNBits") for kinds in (before, after)] == [3 * layers, layers]
    assert not {"DequantizeLinear", "Concat"} & set(after)
    for ours, wanted in zip(run(model, **inputs), expected, strict=True):
        np.testing.assert_allclose(ours, wanted, rtol=0, atol=1e-4)


def materialized(decoder: ir.Model, r1v, tmp_path):
    """The graph's file with its weights in it."""
    from onnx_ir.external_data import load_to_model

    path = tmp_path / "decoder.onnx"
    ir.save(load_to_model(decoder), path)
    return path


def test_other_quantized_projections_stay_as_they_are(decoder):
    assert not PackedProjections(four_bits=True)(quantized(decoder, 2, int8=True)).modified


def test_four_bits_stay_as_they_are_on_a_gpu_and_where_their_groups_differ(r1v):
    for four_bits, attribute in ((False, None), (True, "block_size")):
        decoder = ir.load(r1v.graphs / "decoder.onnx")
        GroupQueryAttention()(decoder)
        quantized(decoder, 2)
        if attribute:
            for dequantize in [node for node in decoder.graph if node.op_type == "DequantizeLinear"][::3]:
                dequantize.attributes[attribute] = ir.AttrInt64(attribute, 1)
        assert not PackedProjections(four_bits=four_bits)(decoder).modified
