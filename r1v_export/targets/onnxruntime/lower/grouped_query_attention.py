"""Cached attention becomes ONNX Runtime's GroupQueryAttention."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import onnx_ir as ir

from r1v_export.contract import CACHE_LENGTH
from r1v_export.exporters.graph_values import dtype_of, input_of, maker, producer, size_of
from r1v_export.targets.onnxruntime.lower.pattern import MICROSOFT, after_heads, before_heads, replace_node

_NO_OTHERS = (None, None, None)
"""position_ids, attention_bias and head_sink, which stand before the scales of a cache."""
_INT8_CACHE: Mapping[str, str | int] = {
    "k_quant_type": "PER_TENSOR",
    "v_quant_type": "PER_TENSOR",
    "kv_cache_bit_width": 8,
}
_HEAD_SIZE_MULTIPLE = 16
"""ONNX Runtime, group_query_attention_helper.h: of 8, and of 16 with do_rotary."""


class GroupQueryAttention(ir.passes.InPlacePass):
    """RotaryEmbedding, TensorScatter and Attention over the cache -> one com.microsoft GroupQueryAttention.

    The standard Attention computes over the whole cache buffer, however little of it is in use; this one stops at the
    row's own length, rotates in place and writes keys and values straight into the buffer that holds the past ones.

    Requires that rows start where their cache ends (`position_ids` count on from `cache_write_index`, and
    `cache_length = cache_write_index + seq`), as the contract says. The kernel takes several new tokens behind a
    filled cache for one row at a time only, and so does `engine.OnnxRuntimeDecoder`.

    Keys and values that are rounded to INT8 on their way into the cache are stored so, by the kernel that has such a
    cache: the inputs and outputs of the graph that are the cache become INT8. It rounds as QuantizeLinear does, and
    multiplies with what DequantizeLinear gives. Rounded to anything else, the standard operators stay.

    Args:
        int8_cache: take such a cache; where it is the CPU that computes.
    """

    def __init__(self, int8_cache: bool = False) -> None:
        super().__init__()
        self.int8_cache = int8_cache

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        graph = model.graph
        cached = [node for node in graph if node.op_type == "Attention" and len(node.inputs) == 7]
        layers = [node for node in cached if _fits_the_kernel(node) and self._has_such_a_cache(node)]
        if not layers:
            return ir.passes.PassResult(model, modified=False)
        lengths = _lengths(graph, before=graph[0])
        for attention in layers:
            _fuse(attention, *lengths)
        model.opset_imports[MICROSOFT] = 1
        return ir.passes.PassResult(model, modified=True)

    def _has_such_a_cache(self, attention: ir.Node) -> bool:
        """Whether the kernel has what keys and values are rounded to, if they are."""
        rounded = [_rounding(producer(value, "TensorScatter").inputs[1]) for value in attention.inputs[1:3]]
        if rounded == [None, None]:
            return True
        return self.int8_cache and all(pair is not None and pair.dtype == ir.DataType.INT8 for pair in rounded)


def _fits_the_kernel(attention: ir.Node) -> bool:
    """Whether heads are of a size that the fused operator takes where it rotates them itself."""
    return size_of(input_of(attention, 0), 3) % _HEAD_SIZE_MULTIPLE == 0


class _Rounding(NamedTuple):
    """A Q/DQ pair with one scale on the way into the cache."""

    value: ir.Value
    scale: ir.Value
    dtype: ir.DataType


def _rounding(written: ir.Value | None) -> _Rounding | None:
    dequantize = maker(written, "DequantizeLinear")
    if dequantize is None:
        return None
    quantize = producer(dequantize.inputs[0], "QuantizeLinear")
    return _Rounding(input_of(quantize, 0), input_of(quantize, 1), dtype_of(quantize.outputs[0]))


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
    new_key, new_value = (input_of(scatter, 1) for scatter in (scatter_key, scatter_value))
    rounded = [pair for pair in map(_rounding, (new_key, new_value)) if pair is not None]
    if rounded:
        new_key, new_value = (pair.value for pair in rounded)
    rotate_key = producer(new_key, "RotaryEmbedding")
    heads, kv_heads = (size_of(input_of(attention, index), 1) for index in (0, 1))
    merged = after_heads(attention.outputs[0])
    fused = ir.node(
        "GroupQueryAttention",
        [
            before_heads(rotate_query.inputs[0]),
            before_heads(rotate_key.inputs[0]),
            before_heads(new_value),
            scatter_key.inputs[0],
            scatter_value.inputs[0],
            seqlens_k,
            total_length,
            rotate_query.inputs[1],
            rotate_query.inputs[2],
            *([*_NO_OTHERS, *(pair.scale for pair in rounded)] if rounded else []),
        ],
        {"num_heads": heads, "kv_num_heads": kv_heads, "do_rotary": 1} | (dict(_INT8_CACHE) if rounded else {}),
        domain=MICROSOFT,
        num_outputs=3,
    )
    replace_node(attention, fused, [merged, scatter_key.outputs[0], scatter_value.outputs[0]])
    for cache in (*fused.inputs[3:5], *fused.outputs[1:]) if rounded else ():
        assert cache is not None
        cache.type = ir.TensorType(ir.DataType.INT8)
