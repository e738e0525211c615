from __future__ import annotations

import onnx_ir as ir
import pytest

from r1v_export.exporters.passes.constant_shapes import ConstantShapes
from tests.exporters.passes.graphs import model_of, value


def reshaped(source: list[int | str], result: list[int | str]) -> ir.Node:
    """The only Reshape of a graph whose target is computed at run time, after the pass."""
    x, shape = value("x", source), value("shape", [len(result)])
    reshape = ir.node("Reshape", [x, shape], {"allowzero": 1})
    reshape.outputs[0].shape = ir.Shape(result)
    model = model_of([x, shape], [reshape.outputs[0]], [reshape])
    ConstantShapes()(model)
    return next(node for node in model.graph if node.op_type == "Reshape")


@pytest.mark.parametrize(
    ("source", "result", "target"),
    [
        (["batch", "seq", 256], ["batch", "seq", 4, 64], [0, 0, 4, 64]),
        (["tiles", 4, 65, 64], ["tiles", 65, 256], [0, 65, 256]),
        (["batch", "seq"], ["batch*seq"], [-1]),
        ([2, 6], [3, 4], [3, 4]),
    ],
)
def test_dimensions_are_kept_given_or_inferred(source, result, target):
    reshape = reshaped(source, result)
    assert reshape.inputs[1].const_value.numpy().tolist() == target
    assert reshape.attributes["allowzero"].value == 0, "0 must mean: keep the input's dimension"


def test_a_shape_with_two_unknowns_stays_computed():
    reshape = reshaped(["batch*seq"], ["batch", "seq"])
    assert reshape.inputs[1].name == "shape"
    assert reshape.attributes["allowzero"].value == 1
