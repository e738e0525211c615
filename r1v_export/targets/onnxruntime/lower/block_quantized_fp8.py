"""Products with FP8 weights become ONNX Runtime's MatMulBlockQuantizedFp8Weight."""

from __future__ import annotations

import onnx_ir as ir

from r1v_export.exporters.graph_values import graph_of, input_of, is_initializer, maker, name_of, shape_of, size_of
from r1v_export.targets.onnxruntime.lower.pattern import MICROSOFT, is_weight, replace_node

_FP8 = ir.DataType.FLOAT8E4M3FN


class BlockQuantizedFp8(ir.passes.InPlacePass):
    """MatMul of float16 inputs with dequantized FP8 weights -> one com.microsoft MatMulBlockQuantizedFp8Weight.

    Weights stay FP8 on the GPU, where the standard graph's are dequantized when it is loaded; inputs are rounded by the
    operator itself. A block is a whole row of the weights, since scales are per output channel or per tensor. Weights
    are transposed and scales spread in the graph, by operators on constants that ONNX Runtime folds at load.

    The operator is CUDA's alone. Its definition: docs/contrib_ops/cuda/matmul_block_scaled_fp8.md of ONNX Runtime.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        replaced = [_replace(node) for node in list(model.graph) if node.op_type == "MatMul"]
        if any(replaced):
            model.opset_imports[MICROSOFT] = 1
        return ir.passes.PassResult(model, modified=any(replaced))


def _replace(matmul: ir.Node) -> bool:
    dequantize = maker(matmul.inputs[1], "DequantizeLinear")
    if dequantize is None or not is_weight(dequantize, _FP8) or matmul.outputs[0].dtype != ir.DataType.FLOAT16:
        return False
    qweight, scale = input_of(dequantize, 0), input_of(dequantize, 1)
    depth, columns = size_of(qweight, 0), size_of(qweight, 1)
    source, input_scale = _rounded_input(input_of(matmul, 0))
    transposed = _constant_node("Transpose", [qweight], {"perm": [1, 0]}, [columns, depth], _FP8)
    graph = graph_of(matmul)
    rows = _rows(graph, f"{scale.name}/rows", columns)
    reshape = "Reshape" if shape_of(scale).rank() else "Expand"
    spread = _constant_node(reshape, [scale, rows], {}, [columns, 1], ir.DataType.FLOAT)
    product = ir.node(
        "MatMulBlockQuantizedFp8Weight",
        [source, transposed.outputs[0], spread.outputs[0], *([] if input_scale is None else [input_scale])],
        {"block_size": depth},
        domain=MICROSOFT,
    )
    graph.insert_before(matmul, [transposed, spread])
    replace_node(matmul, product, [matmul.outputs[0]])
    return True


def _rounded_input(value: ir.Value) -> tuple[ir.Value, ir.Value | None]:
    """What is rounded to FP8 on its way into a product, and its scale; the value itself and None if it is not."""
    dequantize = maker(value, "DequantizeLinear")
    quantize = maker(dequantize.inputs[0], "QuantizeLinear") if dequantize else None
    if dequantize is None or quantize is None or quantize.outputs[0].dtype != _FP8:
        return value, None
    scale = input_of(quantize, 1)
    one_scale = dequantize.inputs[1] is scale and is_initializer(scale) and shape_of(scale).rank() == 0
    return (input_of(quantize, 0), scale) if one_scale else (value, None)


def _rows(graph: ir.Graph, name: str, rows: int) -> ir.Value:
    """The shape [rows, 1], under a name that products of the same weight share."""
    value = graph.initializers.get(name)
    if value is None:
        value = ir.Value(name=name, const_value=ir.tensor([rows, 1], dtype=ir.DataType.INT64, name=name))
        graph.register_initializer(value)
    return value


def _constant_node(
    op_type: str, inputs: list[ir.Value], attributes: dict[str, list[int]], shape: list[int], dtype: ir.DataType
) -> ir.Node:
    node = ir.node(op_type, inputs, attributes, name=f"{name_of(inputs[0])}/{op_type}")
    result = node.outputs[0]
    result.name, result.shape, result.type = node.name, ir.Shape(shape), ir.TensorType(dtype)
    return node
