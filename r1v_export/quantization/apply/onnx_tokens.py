"""Dynamic inputs in the graph: each token of a linear's input is quantized by a scale of its own, made at run time.

    s = max(ReduceMax(|x|) / largest, smallest)                 [..., 1], float32
    x -> x / s -> QuantizeLinear(1) -> DequantizeLinear(1) -> * s

where `largest` is the type's largest value, and `smallest` keeps a token of zeros from a division by zero.
Everything is computed in float32 and cast back: the quotients, not x, are what FP8 or INT8 can hold.
"""

from __future__ import annotations

import onnx_ir as ir
import torch

from r1v_export.quantization.apply.onnx_nodes import TYPES, insert_node, quantize_dequantize
from r1v_export.quantization.number_formats import RANGES, InputType

_FLOAT = ir.DataType.FLOAT


def quantize_tokens(graph: ir.Graph, before: ir.Node, x: ir.Value, kind: InputType, group: str) -> ir.Value:
    """Insert the nodes before a linear.

    Args:
        x: the input of the linears of a group, [..., I].
        group: the nodes' names begin with it.

    Returns: x quantized and dequantized, in its own dtype.
    """
    row = ir.Shape([*(x.shape or ())[:-1], 1])
    wide = x if x.dtype == _FLOAT else _cast(graph, before, x, _FLOAT, f"{group}.wide")

    def insert(op_type: str, inputs: list[ir.Value], shape: ir.Shape | None, name: str, **attributes: int) -> ir.Value:
        return insert_node(graph, before, op_type, inputs, attributes, _FLOAT, shape, f"{group}.{name}")

    def constant(name: str, value: float) -> ir.Value:
        return _constant(graph, f"{group}.{name}", ir.tensor(value, dtype=_FLOAT))

    axes = _constant(graph, f"{group}.token_axis", ir.tensor([-1], dtype=ir.DataType.INT64))
    magnitudes = insert("Abs", [wide], x.shape, "magnitudes")
    peaks = insert("ReduceMax", [magnitudes, axes], row, "token_peaks", keepdims=1)
    scales = insert("Div", [peaks, constant("token_largest", RANGES[kind][1])], row, "token_scales")
    scales = insert("Max", [scales, constant("token_smallest", torch.finfo(torch.float32).tiny)], row, "token_steps")
    quotients = insert("Div", [wide, scales], x.shape, "quotients")
    names = (f"{group}.quotients_quantized", f"{group}.quotients_dequantized")
    rounded = quantize_dequantize(graph, before, quotients, constant("token_one", 1.0), TYPES[kind], names)
    result = insert("Mul", [rounded, scales], x.shape, "input")
    return result if x.dtype in (_FLOAT, None) else _cast(graph, before, result, x.dtype, f"{group}.narrow")


def _cast(graph: ir.Graph, before: ir.Node, x: ir.Value, dtype: ir.DataType, name: str) -> ir.Value:
    return insert_node(graph, before, "Cast", [x], {"to": int(dtype)}, dtype, x.shape, name)


def _constant(graph: ir.Graph, name: str, tensor: ir.TensorProtocol) -> ir.Value:
    value = ir.Value(
        name=name, shape=ir.Shape(tensor.shape.numpy()), type=ir.TensorType(tensor.dtype), const_value=tensor
    )
    graph.initializers[name] = value
    return value
