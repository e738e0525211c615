"""Attention over a cache becomes attention to what is cached and to what is new, which the graph no longer joins.

Letters: B batch, H query heads, K key-value heads, G = H / K query heads of a key-value head, S new tokens, P slots of
the cache, D head_dim.
"""

from __future__ import annotations

from typing import NamedTuple

import onnx_ir as ir

from r1v_export import contract
from r1v_export.exporters.graph_values import dtype_of, shape_of, size_of
from r1v_export.targets.openvino.boundary import new_key, new_value
from r1v_export.targets.openvino.lower.attention_layer import (
    AttentionLayer,
    Maker,
    attention_nodes,
    input_named,
    remove_unused,
)

_UNSEEN = {ir.DataType.FLOAT: -1e30, ir.DataType.BFLOAT16: -1e30, ir.DataType.FLOAT16: -6e4}
"""Added to the score of a slot that a token does not see: no infinity, so that no product of one with zero arises, and
far enough from any score that its softmax is zero."""


class CachedAttention(ir.passes.InPlacePass):
    """TensorScatter and Attention over the cache -> MatMul, Softmax, MatMul.

    OpenVINO's front end has neither operator with a cache. The cache is no longer written by the graph: it takes the
    past slots, and gives keys and values of the new tokens alone, which the runtime writes where they belong. The query
    heads of a key-value head are rows of one product: no key is repeated, and a step that decodes multiplies matrices
    instead of vectors. Scores of past and new tokens are computed apart and normalized together, so that nothing of the
    size of the cache is copied.

    A token sees the slots before `cache_write_index` and the new tokens up to itself, which is what the contract's
    `cache_length = cache_write_index + seq` says; the input `cache_length` is gone.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        graph = model.graph
        layers = attention_nodes(graph)
        if not layers:
            return ir.passes.PassResult(model, modified=False)
        shared = _shared(graph, AttentionLayer.of(layers[0]))
        outputs = [graph.outputs[0]]
        for number, attention in enumerate(layers):
            layer = AttentionLayer.of(attention)
            _replace(graph, attention, layer, shared)
            layer.new_key.name, layer.new_value.name = new_key(number), new_value(number)
            outputs += [layer.new_key, layer.new_value]
        graph.outputs.clear()
        graph.outputs.extend(outputs)
        for name in ("Attention", "TensorScatter"):
            remove_unused(graph, name)
        graph.inputs.remove(input_named(graph, contract.CACHE_LENGTH))
        return ir.passes.PassResult(model, modified=True)


class _Shared(NamedTuple):
    """What every layer uses."""

    scale: ir.Value
    mask: ir.Value
    """[batch, 1, G * seq, past + seq]: 0, or what hides a slot."""
    lengths: ir.Value
    """Past slots and new tokens, [2] int64."""
    grouped: ir.Value
    """The shape [B, K, G * S, D], with 0 for the batch and -1 for the rows."""
    heads: ir.Value
    """The shape [B, H, S, D], likewise."""


def _shared(graph: ir.Graph, layer: AttentionLayer) -> _Shared:
    heads, kv_heads, head_dim = size_of(layer.query, 1), size_of(layer.past_key, 1), size_of(layer.past_key, 3)
    dtype = dtype_of(layer.query)
    make = Maker(graph, before=graph[0], prefix="cached_attention")
    zero, one, ones = make.int64(0), make.int64(1), make.int64([1])
    write_index = input_named(graph, contract.CACHE_WRITE_INDEX)
    batch = make("Shape", [write_index])
    past = make("Shape", [layer.past_key], {"start": 2, "end": 3})
    seq = make("Shape", [input_named(graph, contract.POSITION_IDS)], {"start": 1, "end": 2})
    slots, tokens = (make("Range", [zero, make("Squeeze", [count]), one]) for count in (past, seq))
    used = make("Less", [slots, make("Unsqueeze", [write_index, make.int64([1, 2, 3])])])
    causal = make("LessOrEqual", [tokens, make("Unsqueeze", [tokens, ones])])
    seen = [
        make("Expand", [part, make("Concat", [batch, ones, seq, count], {"axis": 0})])
        for part, count in ((used, past), (causal, seq))
    ]
    shown, hidden = make.constant(0.0, dtype), make.constant(_UNSEEN[dtype], dtype)
    mask = make("Where", [make("Concat", seen, {"axis": 3}), shown, hidden])
    repeats = make.int64([1, 1, heads // kv_heads, 1])
    return _Shared(
        scale=make.constant(head_dim**-0.5, dtype),
        mask=make("Tile", [mask, repeats]),
        lengths=make("Concat", [past, seq], {"axis": 0}),
        grouped=make.int64([0, kv_heads, -1, head_dim]),
        heads=make.int64([0, heads, -1, head_dim]),
    )


def _replace(graph: ir.Graph, attention: ir.Node, layer: AttentionLayer, shared: _Shared) -> None:
    make = Maker(graph, before=attention, prefix=f"{attention.name}")
    query = make("Reshape", [make("Mul", [layer.query, shared.scale]), shared.grouped])
    result = make("Reshape", [_attend(make, query, layer, shared), shared.heads])
    old = attention.outputs[0]
    result.shape, result.type = shape_of(old), old.type
    ir.convenience.replace_all_uses_with(old, result)


def _attend(make: Maker, query: ir.Value, layer: AttentionLayer, shared: _Shared) -> ir.Value:
    """Attention of scaled queries [B, K, G * S, D] to past and new slots, each by itself."""
    scores = [
        make("MatMul", [query, make("Transpose", [key], {"perm": [0, 1, 3, 2]})])
        for key in (layer.past_key, layer.new_key)
    ]
    masked = make("Add", [make("Concat", scores, {"axis": 3}), shared.mask])
    weights = make.several("Split", [make("Softmax", [masked], {"axis": -1}), shared.lengths], {"axis": 3}, 2)
    values = [layer.past_value, layer.new_value]
    return make("Add", [make("MatMul", [weight, value]) for weight, value in zip(weights, values, strict=True)])
