"""Shapes that are computed at run time become constants wherever the result's shape says enough."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from r1v_export.exporters.graph_values import input_of


class ConstantShapes(ir.passes.InPlacePass):
    """Give every Reshape a constant target shape, if its dimensions are sizes, kept from the input, or one unknown.

    torch writes each reshape's target as a Concat over the run-time shape. In ONNX, 0 keeps the input's dimension at
    the same place and -1 stands for the one that is left over: engines see static layouts, and readers see the shape.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        for node in list(model.graph):
            if node.op_type != "Reshape" or node.domain or input_of(node, 1).const_value is not None:
                continue
            target = _constant_target(input_of(node, 0).shape, node.outputs[0].shape)
            if target is None:
                continue
            constant = ir.node("Constant", [], {"value": ir.tensor(np.array(target, dtype=np.int64))})
            constant.outputs[0].const_value = constant.attributes["value"].as_tensor()
            constant.metadata_props.update(node.metadata_props)
            model.graph.insert_before(node, constant)
            node.replace_input_with(1, constant.outputs[0])
            node.attributes["allowzero"] = ir.AttrInt64("allowzero", 0)
            modified = True
        return ir.passes.PassResult(model, modified)


def _constant_target(source: ir.Shape | None, result: ir.Shape | None) -> list[int] | None:
    """The result's shape in Reshape's terms, or None where run-time values are needed."""
    if source is None or result is None:
        return None

    def target(axis: int, dim: int | ir.SymbolicDim) -> int:
        if isinstance(dim, int):
            return dim
        return 0 if axis < len(source) and source[axis] == dim else -1

    dims = [target(axis, dim) for axis, dim in enumerate(result)]
    return dims if dims.count(-1) <= 1 else None
