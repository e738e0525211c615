"""LayerScale becomes part of the projection it scales."""

from __future__ import annotations

import onnx_ir as ir

from r1v_export.exporters.graph_values import graph_of, is_initializer, maker
from r1v_export.targets.onnxruntime.lower.pattern import replace_node


class FoldedLayerScale(ir.passes.InPlacePass):
    """scale * (x @ weight + bias) -> x @ (weight * scale) + bias * scale, for a constant vector `scale`.

    Saves a pass over the hidden state. The products of constants are in the graph and are folded by ONNX Runtime when
    it loads the model.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        folded = [_smooth_layer(node) for node in list(model.graph) if node.op_type == "Mul"]
        return ir.passes.PassResult(model, modified=any(folded))


def _smooth_layer(scaling: ir.Node) -> bool:
    scale, scaled = scaling.inputs
    add = maker(scaled, "Add")
    matmul = maker(add.inputs[0], "MatMul") if add else None
    if scaled is None or add is None or matmul is None or len(scaled.uses()) > 1:
        return False
    x, weight = matmul.inputs
    bias = add.inputs[1]
    if not (is_initializer(scale) and is_initializer(weight) and is_initializer(bias)):
        return False
    scaled_weight, scaled_bias = _product(weight, scale), _product(bias, scale)
    product = ir.node("MatMul", [x, scaled_weight.outputs[0]], name=matmul.name)
    result = ir.node("Add", [product.outputs[0], scaled_bias.outputs[0]])
    graph_of(scaling).insert_before(scaling, [scaled_weight, scaled_bias, product])
    replace_node(scaling, result, [scaling.outputs[0]])
    return True


def _product(constant: ir.Value, scale: ir.Value) -> ir.Node:
    node = ir.node("Mul", [constant, scale], name=f"{constant.name}/scaled")
    node.outputs[0].shape, node.outputs[0].type = constant.shape, constant.type
    return node
