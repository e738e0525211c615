from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx_ir.passes.common import RemoveUnusedNodesPass

from r1v_export.targets.onnxruntime.lower.rounded_products import RoundedProducts
from tests.targets.onnxruntime.lower.graphs import RNG, model, normal, operators, run

HEADER = '<ir_version: 11, opset_import: ["": 21]> g (float[1,n,256] x) => (float[1,n,64] y)'
LAYER = f"{HEADER} {{ p = MatMul(x, a)  q = MatMul(x, b)  s = Add(p, q)  g = Gelu(s)  y = MatMul(g, c) }}"


def rounding(weight: ir.Value) -> tuple[ir.Value, ir.Value]:
    content_IO = weight.const_value.numpy()
    scale_O = np.abs(content_IO).max(axis=0) / 127
    rounded = np.rint(content_IO / np.where(scale_O == 0, 1, scale_O)) + 128
    return initializer(f"{weight.name}/qweight", rounded.astype(np.uint8)), initializer(f"{weight.name}/scale", scale_O)


def initializer(name: str, content: np.ndarray) -> ir.Value:
    tensor = ir.tensor(content, name=name)
    return ir.Value(name=name, const_value=tensor, shape=tensor.shape, type=ir.TensorType(tensor.dtype))


def lowered(text: str, **weights: np.ndarray) -> ir.Model:
    made = model(text, **weights)
    ir.passes.Sequential(RoundedProducts(rounding), RemoveUnusedNodesPass())(made)
    return made


def in_8_bits(values: np.ndarray, axis: int) -> np.ndarray:
    """What values are rounded to, by the largest along an axis."""
    step = np.maximum(np.abs(values).max(axis=axis, keepdims=True), np.float32(1e-30)) / np.float32(127)
    rounded: np.ndarray = np.rint(values / step) * step.astype(np.float64)
    return rounded


def product(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    result: np.ndarray = in_8_bits(x, -1) @ in_8_bits(weight, 0)
    return result


def test_values_are_rounded_by_tokens_and_weights_by_channels():
    weights = {"a": normal(256, 64), "b": normal(256, 64), "c": normal(64, 64)}
    x = normal(1, 9, 256) * RNG.uniform(0.1, 10, (1, 9, 1)).astype(np.float32)
    x[0, 3] = 0
    made = lowered(LAYER.replace("g = Gelu(s)", "g = Identity(s)"), **weights)
    found = operators(made)
    assert (found["MatMulIntegerToFloat"], found["QuantizeLinear"]) == (3, 2), "inputs are rounded once"
    assert "MatMul" not in found
    assert not {"a", "b", "c"} & set(made.graph.initializers)
    assert [value.name for value in made.graph.outputs] == ["y"]
    hidden = (product(x, weights["a"]) + product(x, weights["b"])).astype(np.float32)
    expected = product(hidden, weights["c"])
    (y,) = run(made, x=x)
    assert (y[0, 3] == 0).all()
    # One step of a hidden value that lies on an edge.
    assert np.linalg.norm(y - expected) < 1e-3 * np.linalg.norm(expected)


def test_a_weight_of_two_products_is_rounded_once():
    a = normal(64, 64)
    made = lowered(f"{HEADER.replace('256', '64')} {{ p = MatMul(x, a)  y = MatMul(p, a) }}", a=a)
    x = normal(1, 5, 64)
    (y,) = run(made, x=x)
    expected = product(product(x, a).astype(np.float32), a)
    assert np.linalg.norm(y - expected) < 1e-3 * np.linalg.norm(expected)


@pytest.mark.parametrize("tokens", [1, 9])
def test_the_largest_values_overflow_no_sum(tokens: int):
    """On x86 CPUs without VNNI, where sums of signed weights do."""
    weight = np.where(np.arange(64) % 2, 1, -1) * np.ones((256, 1), np.float32)
    x = np.where(RNG.random((1, tokens, 256)) < 0.9, 3, -3).astype(np.float32)
    made = lowered(f"{HEADER} {{ y = MatMul(x, a) }}", a=weight.astype(np.float32))
    (y,) = run(made, x=x)
    np.testing.assert_allclose(y, x @ weight, rtol=1e-5)


def test_products_of_two_activations_stay():
    header = '<ir_version: 11, opset_import: ["": 21]> g (float[n,64] x, float[64,n] z) => (float[n,n] y)'
    made = model(f"{header} {{ y = MatMul(x, z) }}")
    assert not RoundedProducts(rounding)(made).modified


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("place", [0, 7, 255])
def test_what_is_no_number_does_not_become_one(value: float, place: int):
    made = lowered(f"{HEADER} {{ y = MatMul(x, a) }}", a=normal(256, 64))
    x = normal(1, 3, 256)
    x[0, 1, place] = value
    (y,) = run(made, x=x)
    assert np.isfinite(y[0, [0, 2]]).all()
    assert not np.isfinite(y[0, 1]).any()


def test_onnx_runtime_has_one_kernel_for_each_product(tmp_path):
    made = lowered(LAYER, a=normal(256, 64), b=normal(256, 64), c=normal(64, 64))
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    ort.InferenceSession(ir.to_proto(made).SerializeToString(), options, ["CPUExecutionProvider"])
    found = operators(ir.load(tmp_path / "optimized.onnx"))
    assert found["MatMulIntegerToFloat"] == 3
    assert not {"MatMul", "DequantizeLinear", "MatMulInteger"} & set(found)
