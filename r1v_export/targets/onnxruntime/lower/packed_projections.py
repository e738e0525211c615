"""The three projections in front of GroupQueryAttention become one."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from r1v_export.exporters.graph_values import graph_of
from r1v_export.targets.onnxruntime.lower.pattern import producer


class PackedProjections(ir.passes.InPlacePass):
    """Query, key and value projections of one input -> one MatMul and one Add on concatenated weights.

    One product of a useful width runs on all threads; key and value projections alone, a few hundred columns wide, do
    not. The Concat of the weights is in the graph and is folded by ONNX Runtime when it loads the model, so that the
    weights are not on disk a second time.

    Quantized projections stay as they are: their weights come from a DequantizeLinear each, which ONNX Runtime fuses
    with its own MatMul.

    Requires `GroupQueryAttention` to have run.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        layers = [node for node in model.graph if node.op_type == "GroupQueryAttention"]
        packed = [_pack(attention) for attention in layers]
        return ir.passes.PassResult(model, modified=any(packed))


def _pack(attention: ir.Node) -> bool:
    adds = [producer(value, "Add") for value in attention.inputs[:3]]
    matmuls = [producer(add.inputs[0], "MatMul") for add in adds]
    if not all(matmul.inputs[1] is not None and matmul.inputs[1].is_initializer() for matmul in matmuls):
        return False
    source = matmuls[0].inputs[0]
    if any(matmul.inputs[0] is not source for matmul in matmuls):
        raise ir.passes.PreconditionError(f"{attention.name}: query, key and value are not projected from one input")
    weight = _concatenated([matmul.inputs[1] for matmul in matmuls], axis=1)
    bias = _concatenated([add.inputs[1] for add in adds], axis=0)
    matmul = ir.node("MatMul", [source, weight.outputs[0]], name=f"{attention.name}/qkv_proj/MatMul")
    add = ir.node("Add", [matmul.outputs[0], bias.outputs[0]], name=f"{attention.name}/qkv_proj/Add")
    graph_of(attention).insert_before(attention, [weight, bias, matmul, add])
    attention.replace_input_with(0, add.outputs[0])
    attention.replace_input_with(1, None)
    attention.replace_input_with(2, None)
    return True


def _concatenated(constants: Sequence[ir.Value | None], axis: int) -> ir.Node:
    names = [constant.name or "" for constant in constants if constant is not None]
    return ir.node("Concat", constants, {"axis": axis}, name=f"{names[0]}/Concat")
