"""Initializers stand in the order in which the graph first uses them."""

from __future__ import annotations

import onnx_ir as ir

from r1v_export.exporters.graph_values import name_of


class OrderOfUse(ir.passes.InPlacePass):
    """Sort the initializers by first use: weights then stream from checkpoint to file nearly sequentially, layer by
    layer, and a reader finds them in the order of the data flow."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        initializers = model.graph.initializers
        used = dict.fromkeys(value for node in model.graph for value in node.inputs if value is not None)
        ordered = [value for value in used if value.is_initializer()]
        modified = [value.name for value in ordered] != list(initializers)
        initializers.clear()
        for value in ordered:
            initializers[name_of(value)] = value
        return ir.passes.PassResult(model, modified)
