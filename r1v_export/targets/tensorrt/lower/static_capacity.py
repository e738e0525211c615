"""The cache's capacity becomes a number."""

from __future__ import annotations

import onnx_ir as ir

CAPACITY = "capacity"


class StaticCapacity(ir.passes.InPlacePass):
    """Put a number in the place of the symbol `capacity`: TensorRT updates a cache in place only where its length is
    static."""

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self.capacity = capacity

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        made = (value for node in model.graph for value in node.outputs)
        changed = [self._fix(value) for value in (*model.graph.inputs, *model.graph.outputs, *made)]
        return ir.passes.PassResult(model, any(changed))

    def _fix(self, value: ir.Value) -> bool:
        if value.shape is None or CAPACITY not in [str(dim) for dim in value.shape]:
            return False
        value.shape = ir.Shape([self.capacity if str(dim) == CAPACITY else dim for dim in value.shape])
        return True
