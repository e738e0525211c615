"""Attention over the cache becomes OpenVINO's own operator over a pool of blocks.

Letters: T new tokens of all sequences, H query heads, K key-value heads, D head_dim.
"""

from __future__ import annotations

import onnx_ir as ir

from r1v_export import contract
from r1v_export.exporters.graph_values import input_of, maker, shape_of, size_of
from r1v_export.targets.openvino.boundary import BLOCK_TABLE, DOMAIN, PAGED_ATTENTION, pool_pairs
from r1v_export.targets.openvino.lower.attention_layer import (
    AttentionLayer,
    Maker,
    attention_nodes,
    input_named,
    remove_unused,
)

_BATCH = 1
_SWAP = 0, 2, 1, 3
"""Of tokens and heads."""


class PagedAttention(ir.passes.InPlacePass):
    """TensorScatter and Attention over the cache -> the node `PagedAttention`, which `runtime.paged_attention` makes
    OpenVINO's operator of.

    The operator writes the cache itself, a pool of blocks that sequences have some of. The graph's batch is 1: the new
    tokens of all sequences, as many as each has, are one after the other in it, without padding, and what every other
    node computes is of each token by itself. The inputs of `boundary.BLOCK_TABLE` say which tokens are whose, and where
    their keys and values are; they take the place of `cache_write_index` and `cache_length`.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        graph = model.graph
        layers = attention_nodes(graph)
        if not layers:
            return ir.passes.PassResult(model, modified=False)
        table = [_add_input(graph, name, ir.DataType.INT32, [None] * rank) for name, rank in BLOCK_TABLE.items()]
        for attention, names in zip(layers, pool_pairs(len(layers)), strict=True):
            pools = [_add_input(graph, name, ir.DataType.FLOAT, [None] * 4) for name in names]
            _replace(graph, attention, AttentionLayer.of(attention), pools, table)
        del graph.outputs[1:]
        for name in ("Attention", "TensorScatter"):
            remove_unused(graph, name)
        past = [name for name, _ in contract.cache_pairs(len(layers))]
        for name in (contract.CACHE_WRITE_INDEX, contract.CACHE_LENGTH, *past):
            graph.inputs.remove(input_named(graph, name))
        graph.opset_imports[DOMAIN] = 1
        return ir.passes.PassResult(model, modified=True)


def _replace(
    graph: ir.Graph, attention: ir.Node, layer: AttentionLayer, pools: list[ir.Value], table: list[ir.Value]
) -> None:
    make = Maker(graph, before=attention, prefix=f"{attention.name}")
    heads, kv_heads, head_dim = (size_of(layer.query, 1), size_of(layer.past_key, 1), size_of(layer.past_key, 3))

    def flat(value: ir.Value, count: int) -> ir.Value:
        """[1, heads, T, D] -> [T, heads * D]. Where a RotaryEmbedding made it, another one takes its place, to which
        each token is a batch of its own: so nothing is transposed."""
        rotary = maker(value, "RotaryEmbedding")
        if rotary is None:
            by_token = _by_token(make, value)
        else:
            unrotated, *tables, positions = (input_of(rotary, index) for index in range(4))
            heads_of_token = make("Reshape", [_by_token(make, unrotated), make.int64([-1, count, 1, head_dim])])
            position_of_token = make("Reshape", [positions, make.int64([-1, 1])])
            inputs = [heads_of_token, *tables, position_of_token]
            by_token = make("RotaryEmbedding", inputs, dict(rotary.attributes))
        return make("Reshape", [by_token, make.int64([-1, count * head_dim])])

    new = [flat(layer.query, heads), flat(layer.new_key, kv_heads), flat(layer.new_value, kv_heads)]
    sizes = {"kv_heads": kv_heads, "head_dim": head_dim}
    attended = make(PAGED_ATTENTION, [*new, *pools, *table], sizes, domain=DOMAIN)
    by_head = make("Reshape", [attended, make.int64([_BATCH, -1, heads, head_dim])])
    result = make("Transpose", [by_head], {"perm": _SWAP})
    old = attention.outputs[0]
    result.shape, result.type = shape_of(old), old.type
    ir.convenience.replace_all_uses_with(old, result)


def _by_token(make: Maker, by_head: ir.Value) -> ir.Value:
    """The numbers of [1, heads, T, D] in the order [1, T, heads, D], which is that of the projection before."""
    transpose = maker(by_head, "Transpose")
    if transpose is None or tuple(transpose.attributes.get_ints("perm", ())) != _SWAP:
        return make("Transpose", [by_head], {"perm": _SWAP})
    split = maker(transpose.inputs[0], "Reshape")
    return input_of(transpose if split is None else split, 0)


def _add_input(graph: ir.Graph, name: str, dtype: ir.DataType, shape: list[None]) -> ir.Value:
    value = ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(dtype))
    graph.inputs.append(value)
    return value
