"""The vision tower's joint projection of query, key and value becomes three."""

from __future__ import annotations

import onnx_ir as ir

from r1v_export.exporters.graph_values import graph_of, is_initializer, maker, producer
from r1v_export.targets.onnxruntime.lower.pattern import replace_node

_PARTS = 3


class SplitProjections(ir.passes.InPlacePass):
    """One MatMul [.., 3 * hidden], taken apart into query, key and value -> a MatMul and an Add for each of them.

    Each is as wide as the hidden state, so nothing is lost, and the pass over the result that takes it apart is saved.
    The Split of the constants is in the graph and is folded by ONNX Runtime when it loads the model.

    Quantized projections stay as they are: their weights come from a DequantizeLinear.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        reshapes = [node for node in model.graph if node.op_type == "Reshape"]
        split = [_split(node) for node in reshapes if len(node.outputs[0].consumers()) == _PARTS]
        return ir.passes.PassResult(model, modified=any(split))


def _split(reshape: ir.Node) -> bool:
    joint = reshape.inputs[0]
    add = maker(joint, "Add")
    matmul = maker(add.inputs[0] if add else joint, "MatMul")
    taken = [_taken(node) for node in reshape.outputs[0].consumers()]
    if matmul is None or None in taken:
        return False
    source, weight = matmul.inputs
    bias = add.inputs[1] if add else None
    if not is_initializer(weight) or not (bias is None or is_initializer(bias)):
        return False
    weights = _pieces(reshape, weight, axis=1)
    biases = _pieces(reshape, bias, axis=0)
    for squeeze in filter(None, taken):
        part = _part(squeeze)
        result = ir.node("MatMul", [source, weights[part]])
        if biases:
            graph_of(squeeze).insert_before(squeeze, result)
            result = ir.node("Add", [result.outputs[0], biases[part]])
        replace_node(squeeze, result, [squeeze.outputs[0]])
    return True


def _taken(slicing: ir.Node) -> ir.Node | None:
    """The Squeeze behind a Slice of one of the parts."""
    consumers = slicing.outputs[0].consumers()
    if slicing.op_type != "Slice" or len(consumers) != 1 or consumers[0].op_type != "Squeeze":
        return None
    return consumers[0]


def _part(squeeze: ir.Node) -> int:
    """Which of the parts is sliced."""
    start = producer(squeeze.inputs[0], "Slice").inputs[1]
    if start is None or start.const_value is None:
        raise ir.passes.PreconditionError(f"{squeeze.name}: expected to come from a Slice with constant bounds")
    return int(start.const_value.numpy().item())


def _pieces(before: ir.Node, constant: ir.Value | None, axis: int) -> list[ir.Value]:
    if constant is None:
        return []
    attributes = {"axis": axis, "num_outputs": _PARTS}
    node = ir.node("Split", [constant], attributes, num_outputs=_PARTS, name=f"{constant.name}/Split")
    graph_of(before).insert_before(before, node)
    return list(node.outputs)
