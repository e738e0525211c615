"""Attention over a cache becomes attention to what is cached and to what is new, which the graph no longer joins.

Letters: B batch, H query heads, K key-value heads, G = H / K query heads of a key-value head, S new tokens, P slots of
the cache, D head_dim.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import onnx_ir as ir

from r1v_export import contract
from r1v_export.exporters.graph_values import dtype_of, input_of, shape_of, size_of
from r1v_export.targets.openvino.boundary import new_key, new_value

_UNSEEN = {ir.DataType.FLOAT: -1e30, ir.DataType.BFLOAT16: -1e30, ir.DataType.FLOAT16: -6e4}
"""Added to the score of a slot that a token does not see: no infinity, so that no product of one with zero arises, and
far enough from any score that its softmax is zero."""

_ATTENTION_OPSET = 23
"""OpenVINO pads the mask of the next one's Attention, which takes twice as long as the rest in bfloat16."""


class CachedAttention(ir.passes.InPlacePass):
    """TensorScatter and Attention over the cache -> MatMul, Softmax, MatMul, or Attention without a cache.

    OpenVINO's front end has neither operator with a cache. The cache is no longer written by the graph: it takes the
    past slots, and gives keys and values of the new tokens alone, which the runtime writes where they belong. The query
    heads of a key-value head are rows of one product: no key is repeated, and a step that decodes multiplies matrices
    instead of vectors.

    A token sees the slots before `cache_write_index` and the new tokens up to itself, which is what the contract's
    `cache_length = cache_write_index + seq` says; the input `cache_length` is gone.

    Args:
        prompts: for runs of many tokens: one Attention over past and new slots, next to each other, which OpenVINO
            computes without scores of all tokens in memory (1.2 times as fast with 512 tokens, 1.4 times behind 3,584
            others). Else scores of past and new tokens are computed apart and normalized together, so that nothing of
            the size of the cache is copied, which is faster where tokens are decoded.
    """

    def __init__(self, *, prompts: bool = False) -> None:
        super().__init__()
        self._prompts = prompts

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        graph = model.graph
        layers = [node for node in graph if node.op_type == "Attention" and len(node.inputs) == 7]
        if not layers:
            return ir.passes.PassResult(model, modified=False)
        shared = _shared(graph, _Layer.of(layers[0]))
        outputs = [graph.outputs[0]]
        for number, attention in enumerate(layers):
            layer = _Layer.of(attention)
            _replace(graph, attention, layer, shared, _together if self._prompts else _apart)
            layer.new_key.name, layer.new_value.name = new_key(number), new_value(number)
            outputs += [layer.new_key, layer.new_value]
        graph.outputs.clear()
        graph.outputs.extend(outputs)
        for name in ("Attention", "TensorScatter"):
            _remove_unused(graph, name)
        graph.inputs.remove(_input(graph, contract.CACHE_LENGTH))
        if self._prompts:
            graph.opset_imports[""] = _ATTENTION_OPSET
        return ir.passes.PassResult(model, modified=True)


class _Layer(NamedTuple):
    """What attention of one layer is computed from, each [batch, heads, positions, head_dim]."""

    query: ir.Value
    past_key: ir.Value
    new_key: ir.Value
    past_value: ir.Value
    new_value: ir.Value

    @staticmethod
    def of(attention: ir.Node) -> _Layer:
        if set(attention.attributes) != {"is_causal"}:
            raise ir.passes.PreconditionError(f"{attention.name}: attributes {sorted(attention.attributes)}")
        scatters = [_scatter(input_of(attention, index)) for index in (1, 2)]
        parts = [input_of(scatter, index) for scatter in scatters for index in (0, 1)]
        return _Layer(input_of(attention, 0), *parts)


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


_Attend = Callable[["_Maker", ir.Value, _Layer, _Shared], ir.Value]


def _shared(graph: ir.Graph, layer: _Layer) -> _Shared:
    heads, kv_heads, head_dim = size_of(layer.query, 1), size_of(layer.past_key, 1), size_of(layer.past_key, 3)
    dtype = dtype_of(layer.query)
    make = _Maker(graph, before=graph[0], prefix="cached_attention")
    zero, one, ones = make.int64(0), make.int64(1), make.int64([1])
    write_index = _input(graph, contract.CACHE_WRITE_INDEX)
    batch = make("Shape", [write_index])
    past = make("Shape", [layer.past_key], {"start": 2, "end": 3})
    seq = make("Shape", [_input(graph, contract.POSITION_IDS)], {"start": 1, "end": 2})
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


def _replace(graph: ir.Graph, attention: ir.Node, layer: _Layer, shared: _Shared, attend: _Attend) -> None:
    make = _Maker(graph, before=attention, prefix=f"{attention.name}")
    query = make("Reshape", [make("Mul", [layer.query, shared.scale]), shared.grouped])
    result = make("Reshape", [attend(make, query, layer, shared), shared.heads])
    old = attention.outputs[0]
    result.shape, result.type = shape_of(old), old.type
    ir.convenience.replace_all_uses_with(old, result)


def _apart(make: _Maker, query: ir.Value, layer: _Layer, shared: _Shared) -> ir.Value:
    """Attention of scaled queries [B, K, G * S, D] to past and new slots, each by itself."""
    scores = [
        make("MatMul", [query, make("Transpose", [key], {"perm": [0, 1, 3, 2]})])
        for key in (layer.past_key, layer.new_key)
    ]
    masked = make("Add", [make("Concat", scores, {"axis": 3}), shared.mask])
    weights = make.several("Split", [make("Softmax", [masked], {"axis": -1}), shared.lengths], {"axis": 3}, 2)
    values = [layer.past_value, layer.new_value]
    return make("Add", [make("MatMul", [weight, value]) for weight, value in zip(weights, values, strict=True)])


def _together(make: _Maker, query: ir.Value, layer: _Layer, shared: _Shared) -> ir.Value:
    """The same over copies of past and new slots that lie next to each other."""
    pairs = (layer.past_key, layer.new_key), (layer.past_value, layer.new_value)
    key, value = (make("Concat", pair, {"axis": 2}) for pair in pairs)
    return make("Attention", [query, key, value, shared.mask], {"scale": 1.0})


class _Maker:
    """Makes nodes in front of one, their names below a prefix."""

    def __init__(self, graph: ir.Graph, before: ir.Node, prefix: str) -> None:
        self._graph, self._before, self._prefix, self._count = graph, before, prefix, 0

    def __call__(self, op_type: str, inputs: Sequence[ir.Value], attributes: dict[str, Any] | None = None) -> ir.Value:
        return self.several(op_type, inputs, attributes, 1)[0]

    def several(
        self, op_type: str, inputs: Sequence[ir.Value], attributes: dict[str, Any] | None, outputs: int
    ) -> Sequence[ir.Value]:
        name = self._name(op_type)
        node = ir.node(op_type, inputs, attributes or {}, num_outputs=outputs, name=name)
        for index, output in enumerate(node.outputs):
            output.name = f"{name}/{index}"
        self._graph.insert_before(self._before, node)
        return node.outputs

    def int64(self, content: int | list[int]) -> ir.Value:
        return self.constant(content, ir.DataType.INT64)

    def constant(self, content: float | list[int], dtype: ir.DataType) -> ir.Value:
        name = self._name("constant")
        tensor = ir.Tensor(np.asarray(content).astype(dtype.numpy()), dtype=dtype, name=name)
        value = ir.Value(name=name, const_value=tensor, shape=tensor.shape, type=ir.TensorType(dtype))
        self._graph.register_initializer(value)
        return value

    def _name(self, what: str) -> str:
        self._count += 1
        return f"{self._prefix}/{what}_{self._count}"


def _scatter(value: ir.Value) -> ir.Node:
    node = value.producer()
    if node is None or node.op_type != "TensorScatter":
        found = "an input or initializer" if node is None else node.op_type
        raise ir.passes.PreconditionError(f"{value.name}: expected to come from TensorScatter, not {found}")
    return node


def _input(graph: ir.Graph, name: str) -> ir.Value:
    return next(value for value in graph.inputs if value.name == name)


def _remove_unused(graph: ir.Graph, op_type: str) -> None:
    """Remove the nodes of an operator that nothing uses any more."""
    unused = [node for node in graph if node.op_type == op_type and not any(o.uses() for o in node.outputs)]
    graph.remove(unused, safe=True)
