"""Names, shapes, types, inputs and makers of a graph's values, which `onnx_ir` declares as optional."""

from __future__ import annotations

from typing import TypeGuard

import onnx_ir as ir

from r1v_export.errors import GraphError

_FIX = "export the graph again"


def input_of(node: ir.Node, index: int) -> ir.Value:
    """An input of an operator, by its position.

    Raises:
        GraphError: the input is missing.
    """
    value = node.inputs[index] if index < len(node.inputs) else None
    if value is None:
        raise GraphError("An operator lacks an input.", where=node.name, expected=f"input {index}", fix=_FIX)
    return value


def name_of(value: ir.Value) -> str:
    """The name of a value.

    Raises:
        GraphError: the value has no name.
    """
    if value.name is None:
        raise GraphError("A value of the graph has no name.", where=value.producer(), fix=_FIX)
    return value.name


def shape_of(value: ir.Value) -> ir.Shape:
    """The shape of a value.

    Raises:
        GraphError: the value has no shape.
    """
    if value.shape is None:
        raise GraphError("A value of the graph has no shape.", where=value.name, fix=_FIX)
    return value.shape


def size_of(value: ir.Value, axis: int) -> int:
    """The static size of a value along an axis.

    Raises:
        GraphError: the dimension is a symbol, or the value has no shape.
    """
    size = shape_of(value)[axis]
    if not isinstance(size, int):
        raise GraphError(f"Axis {axis} of a value is not static.", where=value.name, found=size, fix=_FIX)
    return size


def dtype_of(value: ir.Value) -> ir.DataType:
    """The element type of a value.

    Raises:
        GraphError: the value has no type.
    """
    if value.dtype is None:
        raise GraphError("A value of the graph has no type.", where=value.name, fix=_FIX)
    return value.dtype


def graph_of(node: ir.Node) -> ir.Graph:
    """The graph that an operator is part of.

    Raises:
        GraphError: the node was taken out of its graph.
    """
    if node.graph is None:
        raise GraphError("An operator is in no graph.", where=node.name)
    return node.graph


def is_initializer(value: ir.Value | None) -> TypeGuard[ir.Value]:
    """Whether an input is there and is an initializer of the graph."""
    return value is not None and value.is_initializer()


def maker(value: ir.Value | None, op_type: str) -> ir.Node | None:
    """The node that makes `value`, if it is of this operator."""
    node = None if value is None else value.producer()
    return node if node is not None and node.op_type == op_type else None


def producer(value: ir.Value | None, op_type: str) -> ir.Node:
    """The node that makes `value`.

    Raises:
        PreconditionError: it is not of the operator expected.
    """
    node = maker(value, op_type)
    if node is None:
        other = None if value is None else value.producer()
        found = "an input or initializer" if other is None else other.op_type
        raise ir.passes.PreconditionError(f"{value and value.name}: expected to come from {op_type}, not {found}")
    return node
