from __future__ import annotations

from r1v_export.targets.onnxruntime.lower.folded_layer_scale import FoldedLayerScale
from tests.targets.onnxruntime.lower.graphs import check, model, normal

HEADER = '<ir_version: 11, opset_import: ["": 24]>'
CONSTANTS = {"w": normal(8, 6), "b": normal(6), "scale": normal(6)}


def test_the_scale_goes_into_weight_and_bias():
    made = model(
        f"""{HEADER} g (float[2,3,8] x) => (float[2,3,6] y) {{ p = MatMul(x, w)  q = Add(p, b)  y = Mul(scale, q) }}""",
        **CONSTANTS,
    )
    check(made, FoldedLayerScale(), x=normal(2, 3, 8))
    # What is multiplied now are constants, which ONNX Runtime folds at load.
    scaled = [node for node in made.graph if node.op_type == "Mul"]
    assert all(value.is_initializer() for node in scaled for value in node.inputs)
    assert len(scaled) == 2


def test_a_projection_that_others_read_unscaled_is_left_alone():
    made = model(
        f"""{HEADER} g (float[2,3,8] x) => (float[2,3,6] y, float[2,3,6] z) {{
            p = MatMul(x, w)  q = Add(p, b)  y = Mul(scale, q)  z = Neg(q) }}""",
        **CONSTANTS,
    )
    assert not FoldedLayerScale()(made).modified


def test_a_product_of_two_computed_values_is_left_alone():
    made = model(
        f"""{HEADER} g (float[2,3,8] x, float[2,3,6] gate) => (float[2,3,6] y) {{
            p = MatMul(x, w)  q = Add(p, b)  y = Mul(gate, q) }}""",
        w=CONSTANTS["w"],
        b=CONSTANTS["b"],
    )
    assert not FoldedLayerScale()(made).modified
