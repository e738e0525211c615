from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx.reference import ReferenceEvaluator
from onnx_ir.passes.common import RemoveUnusedNodesPass, ShapeInferencePass, TopologicalSortPass

from r1v_export.targets.onnxruntime.lower.integer_products import IntegerProducts
from r1v_export.targets.onnxruntime.session_options import EXACT_INT8
from tests.targets.onnxruntime.lower.graphs import RNG, model, normal, operators

HEADER = '<ir_version: 11, opset_import: ["": 21]> g (float[1,n,256] x) => (float[1,n,64] y)'
SQUARE = '<ir_version: 11, opset_import: ["": 21]> g (float[1,n,64] x) => (float[1,n,64] y)'
ROUND = "q = QuantizeLinear <output_dtype=3> (x, s)  d = DequantizeLinear (q, s)"
SHARED = f"""{HEADER} {{ {ROUND}
    wa = DequantizeLinear <axis=1> (a, sa)  ya = MatMul(d, wa)
    wb = DequantizeLinear <axis=1> (b, sb)  yb = MatMul(d, wb)
    y = Add(ya, yb) }}"""
TOKENS = f"""{HEADER} {{
    m = Abs(x)  l = ReduceMax(m, axes)  t = Mul(l, s)  p = Div(x, t)
    q = QuantizeLinear <output_dtype=3> (p, one)  d = DequantizeLinear (q, one)  z = Mul(d, t)
    wa = DequantizeLinear <axis=1> (a, sa)  y = MatMul(z, wa) }}"""
OTHER_WEIGHTS = f"""{HEADER} {{ {ROUND}
    wa = DequantizeLinear <axis=1> (a, sa)  ya = MatMul(d, wa)
    wb = DequantizeLinear <axis=1> (b, sb)  yb = MatMul(x, wb)
    y = Add(ya, yb) }}"""


def weights(kind: str) -> np.ndarray:
    """Random ones, or the largest of either sign: of them any two products overflow 16 bits."""
    random = RNG.integers(-127, 128, (256, 64))
    return (random if kind == "random" else np.where(np.arange(64) % 2, 127, -127) * np.ones((256, 1))).astype(np.int8)


def made(text: str, kind: str = "random") -> ir.Model:
    initializers = {name: weights(kind) for name in ("a", "b")} | {"c": weights(kind)[:64]}
    initializers |= {name: np.full(64, 1 / 127, np.float32) for name in ("sa", "sb")}
    initializers |= {"s": np.float32(3 / 127), "one": np.float32(1), "axes": np.array([-1])}
    found = model(
        text, **{name: value for name, value in initializers.items() if f" {name})" in text or f"({name}," in text}
    )
    ShapeInferencePass()(found)
    return found


def lowered(graph: ir.Model) -> ir.Model:
    ir.passes.Sequential(IntegerProducts(), RemoveUnusedNodesPass(), TopologicalSortPass())(graph)
    return graph


def run(graph: ir.Model, x: np.ndarray) -> np.ndarray:
    options = ort.SessionOptions()
    options.add_session_config_entry(EXACT_INT8, "1")
    content = ir.to_proto(graph).SerializeToString()
    session = ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    result: np.ndarray
    (result,) = session.run(None, {"x": x})
    return result


@pytest.mark.parametrize("kind", ["random", "largest"])
@pytest.mark.parametrize("tokens", [1, 9])
@pytest.mark.parametrize(("text", "products"), [(SHARED, 2), (TOKENS, 1)])
def test_products_of_integers_are_what_the_standard_graph_says(
    text: str, products: int, tokens: int, kind: str
) -> None:
    x = (
        normal(1, tokens, 256)
        if kind == "random"
        else np.where(RNG.random((1, tokens, 256)) < 0.9, 3, -3).astype(np.float32)
    )
    graph = made(text, kind)
    (expected,) = ReferenceEvaluator(ir.to_proto(graph)).run(None, {"x": x})
    found = operators(lowered(graph))
    assert found["MatMulIntegerToFloat"] == products
    assert found["QuantizeLinear"] == 1
    assert "DequantizeLinear" not in found
    assert graph.opset_imports["com.microsoft"] == 1
    np.testing.assert_allclose(run(graph, x), expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize(
    "text",
    [
        # A scale of each input is no token's.
        f"{SQUARE} {{ {ROUND}  z = Mul(d, sa)  wa = DequantizeLinear <axis=1> (c, sa)  y = MatMul(z, wa) }}",
        # So is another factor.
        f"{SQUARE} {{ {ROUND}  z = Mul(d, x)  wa = DequantizeLinear <axis=1> (c, sa)  y = MatMul(z, wa) }}",
        # A scale of each of a weight's inputs.
        f"{SQUARE} {{ {ROUND}  wa = DequantizeLinear <axis=0> (c, sa)  y = MatMul(d, wa) }}",
        # A weight that is read twice.
        f"{SQUARE} {{ {ROUND}  wa = DequantizeLinear <axis=1> (c, sa)  ya = MatMul(d, wa)  yb = MatMul(ya, wa)  "
        "y = Add(ya, yb) }",
    ],
)
def test_other_products_are_left_alone(text: str) -> None:
    assert not IntegerProducts()(made(text)).modified


def test_a_graph_with_int8_weights_of_other_operators_is_left_alone() -> None:
    """ONNX Runtime would fail on it where a CPU needs weights without a sign."""
    assert not IntegerProducts()(made(OTHER_WEIGHTS)).modified
