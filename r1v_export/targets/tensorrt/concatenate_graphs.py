"""Two graphs that follow each other become one."""

from __future__ import annotations

import onnx_ir as ir

from r1v_export.exporters.graph_values import name_of


def concatenate_graphs(first: ir.Model, second: ir.Model, name: str) -> ir.Model:
    """`first`, whose outputs are the inputs of `second`, and `second` behind it, as one model; both are used up.

    The boundary between them stays an output, so that parity can still be held there.

    Raises:
        PreconditionError: the graphs do not fit, or have initializers or nodes of the same name.
    """
    graph, other = first.graph, second.graph
    boundary = {value.name: value for value in graph.outputs}
    if [value.name for value in other.inputs] != list(boundary):
        raise ir.passes.PreconditionError(f"{other.name}: its inputs are not the outputs of {graph.name}")
    for initializer in list(other.initializers.values()):
        other.initializers.pop(name_of(initializer))
        _add_initializer(graph, initializer)
    for value in other.inputs:
        ir.convenience.replace_all_uses_with(value, boundary[value.name], replace_graph_outputs=False)
    nodes = list(other)
    other.remove(nodes)
    graph.extend(nodes)
    outputs = list(other.outputs)
    other.outputs.clear()
    graph.outputs.extend(outputs)
    graph.name = name
    return first


def _add_initializer(graph: ir.Graph, value: ir.Value) -> None:
    """Constants of the graphs may have the same name, and then the same content; weights do not."""
    name = name_of(value)
    there = graph.initializers.get(name)
    if there is None:
        graph.initializers[name] = value
        return
    if isinstance(value.const_value, ir.ExternalTensor):
        raise ir.passes.PreconditionError(f"both graphs have a weight {name}")
    ir.convenience.replace_all_uses_with(value, there)
