from __future__ import annotations

import onnx_ir as ir

from r1v_export.exporters.passes.order_of_use import OrderOfUse
from tests.exporters.passes.graphs import model_of, value


def test_initializers_stand_in_the_order_of_their_first_use():
    x, a, b = value("x", [2]), value("a", [2]), value("b", [2])
    first = ir.node("Add", [x, b])
    second = ir.node("Mul", [first.outputs[0], a])
    third = ir.node("Add", [second.outputs[0], b])
    model = model_of([x], [third.outputs[0]], [first, second, third], [a, b])
    OrderOfUse()(model)
    assert list(model.graph.initializers) == ["b", "a"]
