from __future__ import annotations

import onnx_ir as ir
import pytest
from onnx_ir.passes.common import RemoveUnusedNodesPass

from r1v_export.targets.onnxruntime.lower.split_projections import SplitProjections
from tests.targets.onnxruntime.lower.graphs import check, model, normal, operators

JOINT = """<ir_version: 11, opset_import: ["": 24]>
    g (float[2,5,4] x) => (float[2,5,4] q, float[2,5,4] k, float[2,5,4] v)
    <int64[4] parts = {0,5,3,4}, int64[1] axis = {-2},
     int64[1] zero = {0}, int64[1] one = {1}, int64[1] two = {2}, int64[1] three = {3}> {
        product = MatMul(x, w)
        joint = Add(product, b)
        apart = Reshape(joint, parts)
        q4 = Slice(apart, zero, one, axis)  k4 = Slice(apart, one, two, axis)  v4 = Slice(apart, two, three, axis)
        q = Squeeze(q4, axis)  k = Squeeze(k4, axis)  v = Squeeze(v4, axis) }"""


def test_query_key_and_value_come_from_a_product_each():
    made = model(JOINT, w=normal(4, 12), b=normal(12))
    check(made, SplitProjections(), x=normal(2, 5, 4))
    assert operators(made) == {"Split": 2, "MatMul": 3, "Add": 3}


def test_a_projection_without_biases_is_split_too():
    text = JOINT.replace("joint = Add(product, b)", "joint = Identity(product)").replace(
        "Reshape(joint", "Reshape(product"
    )
    made = model(text, w=normal(4, 12))
    check(made, SplitProjections(), x=normal(2, 5, 4))
    assert operators(made) == {"Split": 1, "MatMul": 3}


def test_a_quantized_projection_stays_in_one_piece():
    text = JOINT.replace("product = MatMul(x, w)", "wide = DequantizeLinear(w, scale)  product = MatMul(x, wide)")
    made = model(text, w=normal(4, 12).astype("int8"), scale=normal(1)[0], b=normal(12))
    assert not SplitProjections()(made).modified


@pytest.mark.parametrize("name", ["r1v", "internvl"])
def test_no_joint_projection_is_left_in_an_exported_tower(name, request):
    built = request.getfixturevalue(name)
    tower = ir.load(built.graphs / "vision.onnx")
    ir.passes.Sequential(SplitProjections(), RemoveUnusedNodesPass())(tower)
    assert [node for node in tower.graph if node.op_type == "Slice" and ".attn/" in (node.name or "")] == []
