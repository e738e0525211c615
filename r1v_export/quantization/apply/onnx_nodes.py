"""Nodes and initializers that quantization adds to a graph."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

TYPES = {
    "fp8": ir.DataType.FLOAT8E4M3FN,
    "int8": ir.DataType.INT8,
    "int4": ir.DataType.INT4,
    "uint4": ir.DataType.UINT4,
}


def quantize_dequantize(
    graph: ir.Graph, before: ir.Node, x: ir.Value, scale: ir.Value, qweight_dtype: ir.DataType, names: tuple[str, str]
) -> ir.Value:
    """Put x through a Q/DQ pair with one scale, a scalar; `names` are those of the two nodes."""
    quantized, dequantized = names
    output = {"output_dtype": int(qweight_dtype)}
    qweight = insert_node(graph, before, "QuantizeLinear", [x, scale], output, qweight_dtype, x.shape, quantized)
    return insert_node(graph, before, "DequantizeLinear", [qweight, scale], {}, x.dtype, x.shape, dequantized)


def unbound_initializer(graph: ir.Graph, name: str, dtype: ir.DataType, shape: tuple[int, ...]) -> ir.Value:
    """Add an initializer whose content is bound later."""
    value = ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(dtype))
    graph.initializers[name] = value
    return value


def insert_node(
    graph: ir.Graph,
    before: ir.Node,
    op_type: str,
    inputs: list[ir.Value],
    attributes: Mapping[str, int],
    dtype: ir.DataType | None,
    shape: ir.Shape | None,
    name: str | None,
) -> ir.Value:
    """A node before another one, named `name/op_type` as all nodes are; returns its result."""
    if op_type == "DequantizeLinear" and dtype != ir.DataType.FLOAT:
        attributes = {**attributes, "output_dtype": int(dtype or 0)}
    node = ir.node(op_type, inputs, {key: int(value) for key, value in attributes.items()})
    node.name = f"{name}/{op_type}"
    result = node.outputs[0]
    result.name, result.shape = node.name, shape
    result.type = ir.TensorType(dtype) if dtype is not None else None
    graph.insert_before(before, node)
    return result
