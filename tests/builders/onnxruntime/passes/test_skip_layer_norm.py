from __future__ import annotations

import numpy as np
import pytest

from r1v_export.builders.onnxruntime.passes.skip_layer_norm import SkipLayerNorm
from tests.builders.onnxruntime.passes.graphs import check, model, normal, operators

HEADER = '<ir_version: 11, opset_import: ["": 24]>'
NORMS = {
    "RMSNormalization": ("RMSNormalization <epsilon=1e-3> (sum, gamma)", {"gamma": normal(8)}),
    "LayerNormalization": (
        "LayerNormalization <epsilon=1e-3> (sum, gamma, beta)",
        {"gamma": normal(8), "beta": normal(8)},
    ),
}


@pytest.mark.parametrize("norm", NORMS)
def test_a_residual_addition_joins_the_norm_and_its_sum_lives_on(norm):
    call, constants = NORMS[norm]
    made = model(
        f"""{HEADER} g (float[2,3,8] h, float[2,3,8] x) => (float[2,3,8] y, float[2,3,8] z) {{
            branch = Mul(x, x)  sum = Add(h, branch)  y = {call}  z = Add(sum, y) }}""",
        **constants,
    )
    check(made, SkipLayerNorm(), h=normal(2, 3, 8), x=normal(2, 3, 8))
    fused = "SkipSimplifiedLayerNormalization" if norm == "RMSNormalization" else "SkipLayerNormalization"
    assert operators(made) == {"Mul": 1, fused: 1, "Add": 1}


@pytest.mark.parametrize("norm", NORMS)
def test_the_bias_of_the_branch_joins_too(norm):
    call, constants = NORMS[norm]
    made = model(
        f"""{HEADER} g (float[2,3,8] h, float[2,3,8] x) => (float[2,3,8] y, float[2,3,8] z) {{
            p = MatMul(x, w)  branch = Add(p, b)  sum = Add(h, branch)  y = {call}  z = Neg(sum) }}""",
        w=normal(8, 8),
        b=normal(8),
        **constants,
    )
    check(made, SkipLayerNorm(), h=normal(2, 3, 8), x=normal(2, 3, 8))
    assert operators(made)["MatMul"] == 1
    assert "Add" not in operators(made)


def test_a_sum_that_is_a_graph_output_keeps_its_name():
    made = model(
        f"""{HEADER} g (float[2,3,8] h, float[2,3,8] x) => (float[2,3,8] y, float[2,3,8] sum) {{
            sum = Add(h, x)  y = {NORMS["RMSNormalization"][0]} }}""",
        gamma=normal(8),
    )
    check(made, SkipLayerNorm(), h=normal(2, 3, 8), x=normal(2, 3, 8))
    assert operators(made) == {"SkipSimplifiedLayerNormalization": 1}


def test_a_norm_of_something_else_and_an_added_constant_are_left_alone():
    made = model(
        f"""{HEADER} g (float[2,3,8] x) => (float[2,3,8] y) {{
            sum = Add(x, position)  t = {NORMS["RMSNormalization"][0]}  y = RMSNormalization(t, gamma) }}""",
        gamma=normal(8),
        position=np.ones((1, 3, 8), dtype=np.float32),
    )
    assert not SkipLayerNorm()(made).modified
