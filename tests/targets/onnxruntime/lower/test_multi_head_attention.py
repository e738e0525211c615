from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from r1v_export.targets.onnxruntime.lower.multi_head_attention import MultiHeadAttention
from tests.targets.onnxruntime.lower.graphs import check, model, normal, operators

SPLIT_AND_MERGE = """<ir_version: 11, opset_import: ["": 24]>
    g (float[2,5,12] q, float[2,5,12] k, float[2,5,12] v) => (float[2,5,12] y)
    <int64[4] heads = {2,5,3,4}, int64[3] merged = {2,5,12}> {
        q4 = Reshape(q, heads)  k4 = Reshape(k, heads)  v4 = Reshape(v, heads)
        qt = Transpose <perm=[0,2,1,3]> (q4)  kt = Transpose <perm=[0,2,1,3]> (k4)
        vt = Transpose <perm=[0,2,1,3]> (v4)
        a = Attention(qt, kt, vt)
        at = Transpose <perm=[0,2,1,3]> (a)
        y = Reshape(at, merged) }"""


def test_heads_are_left_to_the_operator():
    made = model(SPLIT_AND_MERGE)
    ShapeInferencePass()(made)
    check(made, MultiHeadAttention(), q=normal(2, 5, 12), k=normal(2, 5, 12), v=normal(2, 5, 12))
    assert operators(made) == {"MultiHeadAttention": 1}
    assert next(iter(made.graph)).attributes["num_heads"].value == 3


def test_attention_over_a_cache_is_left_alone(r1v):
    assert not MultiHeadAttention()(ir.load(r1v.graphs / "decoder.onnx")).modified
