"""Cached attention becomes ONNX Runtime's GroupQueryAttention."""

from __future__ import annotations

import onnx_ir as ir

from r1v_export.contract import CACHE_LENGTH
from r1v_export.exporters.graph_values import input_of, size_of
from r1v_export.targets.onnxruntime.lower.pattern import (
    MICROSOFT,
    after_heads,
    before_heads,
    maker,
    producer,
    replace_node,
)

_HEAD_SIZE_MULTIPLE = 16
"""ONNX Runtime, group_query_attention_helper.h: of 8, and of 16 with do_rotary."""


class GroupQueryAttention(ir.passes.InPlacePass):
    """RotaryEmbedding, TensorScatter and Attention over the cache -> one com.microsoft GroupQueryAttention.

    The standard Attention computes over the whole cache buffer, however little of it is in use; this one stops at the
    row's own length, rotates in place and writes keys and values straight into the buffer that holds the past ones.

    Requires that rows start where their cache ends (`position_ids` count on from `cache_write_index`, and
    `cache_length = cache_write_index + seq`), as the contract says. The kernel takes several new tokens behind a
    filled cache for one row at a time only, and so does `engine.OnnxRuntimeDecoder`.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        graph = model.graph
        cached = [node for node in graph if node.op_type == "Attention" and len(node.inputs) == 7]
        layers = [node for node in cached if _fits_the_kernel(node) and not _rounds_its_cache(node)]
        if not layers:
            return ir.passes.PassResult(model, modified=False)
        lengths = _lengths(graph, before=graph[0])
        for attention in layers:
            _fuse(attention, *lengths)
        model.opset_imports[MICROSOFT] = 1
        return ir.passes.PassResult(model, modified=True)


def _fits_the_kernel(attention: ir.Node) -> bool:
    """Whether heads are of a size that the fused operator takes where it rotates them itself."""
    return size_of(input_of(attention, 0), 3) % _HEAD_SIZE_MULTIPLE == 0


def _rounds_its_cache(attention: ir.Node) -> bool:
    """Whether keys are quantized on their way into the cache, where the fused operator cannot reach them."""
    return maker(producer(attention.inputs[1], "TensorScatter").inputs[1], "DequantizeLinear") is not None


def _lengths(graph: ir.Graph, before: ir.Node) -> tuple[ir.Value, ir.Value]:
    """`seqlens_k` [batch] int32, lengths less one as GroupQueryAttention expects, and the largest length, a scalar."""
    cache_length = next(value for value in graph.inputs if value.name == CACHE_LENGTH)
    one = ir.Value(name="one", const_value=ir.tensor([1], dtype=ir.DataType.INT32, name="one"))
    graph.register_initializer(one)
    int32 = ir.node("Cast", [cache_length], {"to": ir.DataType.INT32}, name="cache_length/Cast")
    less_one = ir.node("Sub", [int32.outputs[0], one], name="seqlens_k/Sub")
    longest = ir.node("ReduceMax", [int32.outputs[0]], {"keepdims": 0}, name="total_sequence_length/ReduceMax")
    graph.insert_before(before, [int32, less_one, longest])
    return less_one.outputs[0], longest.outputs[0]


def _fuse(attention: ir.Node, seqlens_k: ir.Value, total_length: ir.Value) -> None:
    rotate_query = producer(attention.inputs[0], "RotaryEmbedding")
    scatter_key, scatter_value = (producer(value, "TensorScatter") for value in attention.inputs[1:3])
    rotate_key = producer(scatter_key.inputs[1], "RotaryEmbedding")
    heads, kv_heads = (size_of(input_of(attention, index), 1) for index in (0, 1))
    merged = after_heads(attention.outputs[0])
    fused = ir.node(
        "GroupQueryAttention",
        [
            before_heads(rotate_query.inputs[0]),
            before_heads(rotate_key.inputs[0]),
            before_heads(scatter_value.inputs[1]),
            scatter_key.inputs[0],
            scatter_value.inputs[0],
            seqlens_k,
            total_length,
            rotate_query.inputs[1],
            rotate_query.inputs[2],
        ],
        {"num_heads": heads, "kv_num_heads": kv_heads, "do_rotary": 1},
        domain=MICROSOFT,
        num_outputs=3,
    )
    replace_node(attention, fused, [merged, scatter_key.outputs[0], scatter_value.outputs[0]])
