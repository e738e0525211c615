"""Finding and replacing the few shapes of subgraph that our own exporters write."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

MICROSOFT = "com.microsoft"
"""Domain of ONNX Runtime's contrib operators."""


def producer(value: ir.Value | None, op_type: str) -> ir.Node:
    """The node that makes `value`.

    Raises:
        PreconditionError: it is not of the operator expected.
    """
    node = None if value is None else value.producer()
    if node is None or node.op_type != op_type:
        found = "an input or initialiser" if node is None else node.op_type
        raise ir.passes.PreconditionError(f"{value and value.name}: expected to come from {op_type}, not {found}")
    return node


def replace_node(old: ir.Node, new: ir.Node, results: Sequence[ir.Value | None]) -> None:
    """Put `new` in the place of `old`; its outputs take over name, type and uses of `results`.

    The nodes that made the results so far are left for `RemoveUnusedNodesPass`.
    """
    graph = old.graph
    assert graph is not None
    new.name = old.name
    graph.insert_after(old, new)
    for output, result in zip(new.outputs, results, strict=True):
        if result is None:
            continue
        output.shape, output.type, output.name = result.shape, result.type, result.name
        result.name = f"{result.name}/replaced"
        ir.convenience.replace_all_uses_with(result, output, replace_graph_outputs=True)
