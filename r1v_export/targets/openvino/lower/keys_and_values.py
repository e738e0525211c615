"""The decoder without its head: what gives keys and values of a prompt, and no logits."""

from __future__ import annotations

import onnx_ir as ir

from r1v_export import contract


class KeysAndValues(ir.passes.InPlacePass):
    """The decoder's logits are no output any more, so that head and last MLP go as unused.

    Requires `CachedAttention` to have run.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        graph = model.graph
        logits = [value for value in graph.outputs if value.name == contract.LOGITS]
        for value in logits:
            graph.outputs.remove(value)
        for value in [value for value in graph.inputs if value.name == contract.LOGITS_INDEX]:
            _remove_readers(graph, value)
            graph.inputs.remove(value)
        return ir.passes.PassResult(model, modified=bool(logits))


def _remove_readers(graph: ir.Graph, value: ir.Value) -> None:
    """Remove the nodes that compute something from a value, which nothing else needs."""
    for node in [use.node for use in value.uses()]:
        for output in node.outputs:
            _remove_readers(graph, output)
        if node.graph is not None:
            graph.remove(node, safe=True)
