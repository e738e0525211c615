from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun
from onnx_ir.passes.common import RemoveUnusedNodesPass, ShapeInferencePass

from r1v_export.targets.onnxruntime.lower.block_quantized_fp8 import BlockQuantizedFp8
from tests.targets.onnxruntime.lower.graphs import RNG, model, normal, operators, run

HEADER = '<ir_version: 11, opset_import: ["": 24]>'
QWEIGHT = normal(64, 48).astype(ml_dtypes.float8_e4m3fn)
SCALES = {"": np.float32(0.03), "[48]": RNG.uniform(0.01, 0.05, 48).astype(np.float32)}
X = normal(2, 3, 64).astype(np.float16)
INPUT_SCALE = np.float32(2**-6)
DEQUANTIZE = "w = DequantizeLinear <axis=1, output_dtype=10> (q, scale)"
ROUND = "r = QuantizeLinear <output_dtype=17> (x, xs)  d = DequantizeLinear <output_dtype=10> (r, xs)"


class MatMulBlockQuantizedFp8Weight(OpRun):
    """The operator as ONNX Runtime's schema defines it."""

    op_domain = "com.microsoft"

    def _run(self, a, b, b_scale, a_scale=None, bias=None, block_size=128):
        assert b.dtype == ml_dtypes.float8_e4m3fn
        assert b_scale.shape == (b.shape[0], -(-b.shape[1] // block_size))
        wide = a.astype(np.float32)
        if a_scale is not None:
            wide = (wide / a_scale).astype(ml_dtypes.float8_e4m3fn).astype(np.float32) * a_scale
        weight = b.astype(np.float32) * np.repeat(b_scale, block_size, axis=1)[:, : b.shape[1]]
        return ((wide @ weight.T).astype(a.dtype),)


def lowered(made: ir.Model) -> ir.Model:
    ShapeInferencePass()(made)
    assert BlockQuantizedFp8()(made).modified
    RemoveUnusedNodesPass()(made)
    return made


def computed(made: ir.Model) -> list[np.ndarray]:
    return ReferenceEvaluator(ir.to_proto(made), new_ops=[MatMulBlockQuantizedFp8Weight]).run(None, {"x": X})


@pytest.mark.parametrize("shape", SCALES)
@pytest.mark.parametrize("rounds_input", [True, False])
def test_the_operator_computes_what_the_standard_graph_does(shape, rounds_input):
    body = f"{ROUND if rounds_input else ''}  {DEQUANTIZE}  y = MatMul({'d' if rounds_input else 'x'}, w)"
    constants = {"q": QWEIGHT, "scale": SCALES[shape], **({"xs": INPUT_SCALE} if rounds_input else {})}
    made = model(f"{HEADER} g (float16[2,3,64] x) => (float16[2,3,48] y) {{ {body} }}", **constants)
    (expected,) = run(made, x=X)
    (found,) = computed(lowered(made))
    assert operators(made) == {"Transpose": 1, "Reshape" if shape else "Expand": 1, "MatMulBlockQuantizedFp8Weight": 1}
    # The standard graph rounds dequantized weights to float16 first.
    np.testing.assert_allclose(found.astype(np.float32), expected.astype(np.float32), rtol=0, atol=2e-2)
    assert np.abs(expected.astype(np.float32)).max() > 0.5


def test_an_input_that_two_products_share_is_rounded_by_both():
    made = model(
        f"""{HEADER} g (float16[2,3,64] x) => (float16[2,3,48] y, float16[2,3,48] z) {{
            {ROUND}  {DEQUANTIZE}  y = MatMul(d, w)  z = MatMul(d, w) }}""",
        q=QWEIGHT,
        scale=SCALES["[48]"],
        xs=INPUT_SCALE,
    )
    one, other = computed(lowered(made))
    np.testing.assert_array_equal(one, other)
    assert operators(made)["MatMulBlockQuantizedFp8Weight"] == 2
    assert "QuantizeLinear" not in operators(made)


@pytest.mark.parametrize(
    ("types", "qweight", "scale"),
    [
        (("float", 1), QWEIGHT, SCALES["[48]"]),  # the operator takes no float32
        (("float16", 10), QWEIGHT.astype(np.int8), SCALES["[48]"]),
        (("float16", 10), QWEIGHT, np.ones(64, np.float32)),  # scales along the input
    ],
)
def test_other_products_are_left_alone(types, qweight, scale):
    name, number = types
    axis = 0 if scale.size == 64 else 1
    made = model(
        f"""{HEADER} g ({name}[2,3,64] x) => ({name}[2,3,48] y) {{
            w = DequantizeLinear <axis={axis}, output_dtype={number}> (q, scale)  y = MatMul(x, w) }}""",
        q=qweight,
        scale=scale,
    )
    ShapeInferencePass()(made)
    assert not BlockQuantizedFp8()(made).modified
