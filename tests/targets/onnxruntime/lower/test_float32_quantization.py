from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from onnx_ir.passes.common import RemoveUnusedNodesPass, ShapeInferencePass

from r1v_export.targets.onnxruntime.lower.float32_quantization import Float32Quantization
from tests.targets.onnxruntime.lower.graphs import model, normal, operators, run

HEADER = '<ir_version: 11, opset_import: ["": 24]>'
X = normal(2, 3, 64).astype(np.float16)


def quantized(dtype: int, scale: float, compute: str = "float16") -> ir.Model:
    number = ir.DataType.FLOAT16 if compute == "float16" else ir.DataType.FLOAT
    made = model(
        f"""{HEADER} g ({compute}[2,3,64] x) => ({compute}[2,3,64] y) {{
            q = QuantizeLinear <output_dtype={int(dtype)}> (x, s)
            y = DequantizeLinear <output_dtype={int(number)}> (q, s) }}""",
        s=np.float32(scale),
    )
    ShapeInferencePass()(made)
    return made


@pytest.mark.parametrize("dtype", [ir.DataType.INT8, ir.DataType.FLOAT8E4M3FN])
@pytest.mark.parametrize("scale", [0.02, 3e-8])
def test_values_are_rounded_as_before_also_by_scales_that_float16_does_not_hold(dtype, scale):
    made = quantized(dtype, scale)
    before = run(made, x=X)
    ir.passes.Sequential(Float32Quantization(), RemoveUnusedNodesPass())(made)
    assert operators(made) == {"Cast": 2, "QuantizeLinear": 1, "DequantizeLinear": 1}
    for old, new in zip(before, run(made, x=X), strict=True):
        np.testing.assert_array_equal(old, new)
    for node in made.graph:
        if node.op_type != "Cast":
            floats = [value.dtype for value in (*node.inputs, *node.outputs) if value.dtype != dtype]
            assert set(floats) == {ir.DataType.FLOAT}


def test_a_float32_graph_is_left_alone():
    assert not Float32Quantization()(quantized(ir.DataType.INT8, 0.02, "float")).modified


def test_constants_are_left_to_be_dequantized_at_load():
    made = model(
        f"""{HEADER} g (float16[2,3,64] x) => (float16[2,3,8] y) {{
            w = DequantizeLinear <axis=1, output_dtype=10> (q, s)  y = MatMul(x, w) }}""",
        q=np.ones((64, 8), np.int8),
        s=np.ones(8, np.float32),
    )
    assert not Float32Quantization()(made).modified
