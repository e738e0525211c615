"""Graphs made by hand, for the tests of single passes."""

from __future__ import annotations

import onnx_ir as ir


def value(name: str, shape: list[int | str]) -> ir.Value:
    return ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(ir.DataType.FLOAT))


def model_of(inputs, outputs, nodes, initializers=()) -> ir.Model:
    for index, output in enumerate(outputs):
        output.name = output.name or f"y{index}"
    graph = ir.Graph(inputs, outputs, nodes=nodes, initializers=initializers, opset_imports={"": 24}, name="g")
    return ir.Model(graph, ir_version=11)
