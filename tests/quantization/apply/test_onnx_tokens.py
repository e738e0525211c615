"""Scales of each token in a graph: ONNX Runtime computes what PyTorch's rounding per token gives."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch

from r1v_export.contract import OPSET
from r1v_export.quantization.apply.onnx_tokens import quantize_tokens
from r1v_export.quantization.quantized_linear import quantize_dequantize, token_scale

TYPES = {np.float32: ir.DataType.FLOAT, np.float16: ir.DataType.FLOAT16}


def rounded_by_onnx_runtime(x: np.ndarray, kind: str) -> np.ndarray:
    """x through the nodes that a linear's input goes through."""
    dtype = TYPES[x.dtype.type]
    shape = ir.Shape(["batch", "tokens", x.shape[-1]])
    source = ir.Value(name="x", shape=shape, type=ir.TensorType(dtype))
    after = ir.node("Identity", [source], name="linear")
    after.outputs[0].name, after.outputs[0].shape = "y", shape
    after.outputs[0].type = ir.TensorType(dtype)
    graph = ir.Graph([source], [after.outputs[0]], nodes=[after], name="tokens", opset_imports={"": OPSET})
    after.replace_input_with(0, quantize_tokens(graph, after, source, kind, "linear"))
    model = ir.to_proto(ir.Model(graph, ir_version=11))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


def expected(x: np.ndarray, kind: str) -> np.ndarray:
    wide = torch.from_numpy(x).float()
    return quantize_dequantize(wide, token_scale(wide, kind), kind).numpy().astype(x.dtype)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("kind", ["fp8", "int8"])
def test_every_token_is_rounded_by_its_own_largest_magnitude(kind, dtype):
    x = np.random.default_rng(0).standard_normal((2, 3, 64)) * np.geomspace(1e-3, 1e3, 6).reshape(2, 3, 1)
    x = x.astype(dtype)
    found = rounded_by_onnx_runtime(x, kind)
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, expected(x, kind))
    assert not np.array_equal(found, x)


@pytest.mark.parametrize("kind", ["fp8", "int8"])
def test_a_token_of_zeros_stays_zero_next_to_very_small_and_very_large_ones(kind):
    x = np.random.default_rng(1).standard_normal((1, 4, 64), dtype=np.float32)
    x *= np.array([0.0, 1e-30, 1.0, 1e30], dtype=np.float32).reshape(1, 4, 1)
    found = rounded_by_onnx_runtime(x, kind)
    assert not found[0, 0].any()
    np.testing.assert_array_equal(found, expected(x, kind))
