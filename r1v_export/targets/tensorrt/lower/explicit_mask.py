"""Causal attention over a cache gets its mask spelled out."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from r1v_export import contract

MASK = "visible_slots"
_MASK_INPUT, _LENGTH_INPUT = 3, 6


class ExplicitMask(ir.passes.InPlacePass):
    """Attention(q, k, v, nonpad_kv_seqlen, is_causal=1) -> Attention(q, k, v, mask), the mask made once for all layers:
    slot <= position of the token, which is the slot that the token was written to.

    TensorRT's parser (seen in TensorRT-RTX 1.7.1) ignores `nonpad_kv_seqlen` without a word and takes `is_causal` to be
    aligned at the upper left: the graph as exported would build, and attend to the wrong slots. `cache_length` is then
    read by nothing and leaves the graph's inputs.

    Requires a static capacity.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        graph = model.graph
        cached = [node for node in graph if node.op_type == "Attention" and len(node.inputs) > _LENGTH_INPUT]
        if not cached:
            return ir.passes.PassResult(model, False)
        mask = _visible_slots(graph, _capacity(cached[0]))
        for node in cached:
            node.attributes.pop("is_causal")
            node.resize_inputs(_MASK_INPUT + 1)
            node.replace_input_with(_MASK_INPUT, mask)
        length = next(value for value in graph.inputs if value.name == contract.CACHE_LENGTH)
        graph.inputs.remove(length)
        return ir.passes.PassResult(model, True)

    def ensures(self, model: ir.Model) -> None:
        for node in model.graph:
            if node.op_type == "Attention" and node.attributes.get_int("is_causal", 0) != 0:
                raise ir.passes.PostconditionError(f"{node.name} still leaves its causal mask to the engine")


def _capacity(attention: ir.Node) -> int:
    keys = attention.inputs[1]
    capacity = keys.shape[2] if keys is not None and keys.shape is not None else None
    if not isinstance(capacity, int):
        raise ir.passes.PreconditionError(f"{attention.name}: the cache's capacity is not static")
    return capacity


def _visible_slots(graph: ir.Graph, capacity: int) -> ir.Value:
    """bool [batch, 1, seq, capacity]"""
    positions = next(value for value in graph.inputs if value.name == contract.POSITION_IDS)
    slots = _constant(graph, f"{MASK}/slots", np.arange(capacity))
    axes = _constant(graph, f"{MASK}/axes", np.array([1, 3]))
    unsqueeze = ir.node("Unsqueeze", [positions, axes], name=f"{MASK}/Unsqueeze")
    visible = ir.node("LessOrEqual", [slots, unsqueeze.outputs[0]], name=f"{MASK}/LessOrEqual")
    batch, seq = positions.shape or (None, None)
    for node, dtype, dims in (
        (unsqueeze, ir.DataType.INT64, (batch, 1, seq, 1)),
        (visible, ir.DataType.BOOL, (batch, 1, seq, capacity)),
    ):
        result = node.outputs[0]
        result.name, result.shape, result.type = node.name, ir.Shape(dims), ir.TensorType(dtype)
    graph.insert_before(graph[0], [unsqueeze, visible])
    return visible.outputs[0]


def _constant(graph: ir.Graph, name: str, content: np.ndarray) -> ir.Value:
    tensor = ir.tensor(content.astype(np.int64), name=name)
    value = ir.Value(
        name=name, shape=ir.Shape(content.shape), type=ir.TensorType(ir.DataType.INT64), const_value=tensor
    )
    graph.initializers[name] = value
    return value
