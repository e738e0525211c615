"""Scales of 4-bit weights have the type that they dequantize to."""

from __future__ import annotations

import onnx_ir as ir

from r1v_export.exporters.graph_values import input_of

_FOUR_BITS = (ir.DataType.INT4, ir.DataType.UINT4)


class ScaleTypes(ir.passes.InPlacePass):
    """DequantizeLinear(4-bit values, float32 scale) -> the same with the scale cast first.

    TensorRT finds no type for blocked 4-bit weights whose scales are wider than what they dequantize to, and ONNX
    Runtime fuses them with float16 inputs into a product that it then refuses. Both fold the cast when they build or
    load; a group's scale is its largest weight over 7, which 16 bits hold to three digits.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        cast = [_cast_scale(model.graph, node) for node in list(model.graph) if node.op_type == "DequantizeLinear"]
        return ir.passes.PassResult(model, any(cast))


def _cast_scale(graph: ir.Graph, node: ir.Node) -> bool:
    qweight, scale = input_of(node, 0), input_of(node, 1)
    dtype = node.outputs[0].dtype
    if qweight.dtype not in _FOUR_BITS or dtype is None or scale.dtype == dtype:
        return False
    cast = ir.node("Cast", [scale], {"to": int(dtype)}, name=f"{scale.name}/Cast")
    result = cast.outputs[0]
    result.name, result.shape, result.type = cast.name, scale.shape, ir.TensorType(dtype)
    graph.insert_before(node, cast)
    node.replace_input_with(1, result)
    return True
