from __future__ import annotations

import onnx_ir as ir

from r1v_export import contract
from r1v_export.targets.scale_types import ScaleTypes


def test_scales_of_four_bit_weights_are_cast_to_what_they_dequantize_to_and_others_stay() -> None:
    def initializer(name: str, dtype: ir.DataType, shape: tuple[int, ...]) -> ir.Value:
        return ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(dtype))

    nodes = []
    for qweight in (ir.DataType.INT4, ir.DataType.FLOAT8E4M3FN):
        scale = initializer(f"{qweight.name}.scale", ir.DataType.FLOAT, (1, 8))
        node = ir.node("DequantizeLinear", [initializer(qweight.name, qweight, (128, 8)), scale])
        node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT16)
        nodes.append(node)
    graph = ir.Graph([], [node.outputs[0] for node in nodes], nodes=nodes, opset_imports={"": contract.OPSET})
    ScaleTypes()(ir.Model(graph, ir_version=10))
    assert [node.op_type for node in graph] == ["Cast", "DequantizeLinear", "DequantizeLinear"]
    assert nodes[0].inputs[1].dtype == ir.DataType.FLOAT16
    assert nodes[1].inputs[1].dtype == ir.DataType.FLOAT
