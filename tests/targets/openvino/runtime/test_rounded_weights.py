"""Weights of bfloat16 products: as ml_dtypes rounds, and as OpenVINO computes with float32 constants."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest

from r1v_export.cpus import saturates_int8_products
from r1v_export.targets.openvino.config import OpenVinoConfig
from r1v_export.targets.openvino.engine_file import EngineFile
from tests.targets.openvino.conftest import NEEDS_OPENVINO

pytestmark = NEEDS_OPENVINO

PRODUCTS = """
    <ir_version: 10, opset_import: ["" : 21]>
    products (float[n, 48] x, float[48, 32] w, float[32, 32] shared) => (float[n, 32] y) {
        a = MatMul (x, w)
        b = MatMul (a, shared)
        y = MatMul (b, shared)
    }"""


def test_numbers_are_rounded_to_nearest_and_in_the_middle_to_even() -> None:
    from r1v_export.targets.openvino.runtime.rounded_weights import rounded

    random = np.random.default_rng(0)
    numbers = [1.00390625, 1.01171875, -1.00390625, 3.4e38, np.inf, -np.inf, 0.0, 1e-40]
    weight = np.concatenate([random.standard_normal((5000, 8)), np.array([numbers])]).astype(np.float32)
    expected = weight.astype(ml_dtypes.bfloat16)
    found = rounded(weight)
    assert (found.shape, found.dtype, found.flags.c_contiguous) == ((8, 5001), np.uint16, True)
    np.testing.assert_array_equal(found, expected.view(np.uint16).T)


def test_the_largest_weight_of_an_output_feature_is_127_and_none_is_further_off_than_half_a_step() -> None:
    from r1v_export.targets.openvino.runtime.rounded_weights import rounded_to_int8

    weight = np.random.default_rng(0).standard_normal((5000, 1000)).astype(np.float32)
    weight[:, 1], weight[:, 2] = 0, [3, *[0.5 * 3 / 127] * 4999]
    found, scales = rounded_to_int8(weight)
    assert (found.shape, found.dtype, found.flags.c_contiguous) == ((1000, 5000), np.int8, True)
    np.testing.assert_array_equal(np.abs(found.astype(int)).max(axis=1), [127, 0, *[127] * 998])
    assert set(found[2, 1:]) <= {0, 1}
    assert (np.abs(found.T * scales - weight) <= scales * 0.5001).all()


@pytest.mark.parametrize(("multiply", "error"), [("multiply_in_bfloat16", 5e-3), ("multiply_in_int8", 2e-2)])
def test_a_product_takes_its_weight_rounded_and_one_that_is_used_twice_stays(
    multiply: str, error: float, tmp_path: Path
) -> None:
    random = np.random.default_rng(0)
    w, shared = (random.standard_normal(shape).astype(np.float32) / 6 for shape in ((48, 32), (32, 32)))
    run, _ = compiled(tmp_path, multiply, w, shared)
    x = random.standard_normal((3, 48)).astype(np.float32)
    x[1] = 0  # has no largest value to be divided by
    found = run({"x": x, "shared": shared})[0]
    expected = x @ w @ shared @ shared
    assert 0 < np.linalg.norm(found - expected) < error * np.linalg.norm(expected)


@pytest.mark.parametrize("products", ["f32", "bf16"])
def test_operands_in_8_bits_are_multiplied_as_integers_where_sums_do_not_overflow(
    products: str, tmp_path: Path
) -> None:
    run, _ = compiled(tmp_path, "multiply_in_int8", np.ones((48, 32), np.float32), products=products)
    nodes = [node.get_rt_info() for node in run.get_runtime_model().get_ops()]
    kernels = {node["primitiveType"].astype(str) for node in nodes if "FullyConnected" in node["layerType"].astype(str)}
    assert any(kernel.endswith("_i8") for kernel in kernels) is not saturates_int8_products(), kernels


def test_each_token_has_a_scale_of_its_own(tmp_path: Path) -> None:
    random, identity = np.random.default_rng(0), np.eye(32, dtype=np.float32)
    weight, x = (random.standard_normal(shape).astype(np.float32) for shape in ((48, 32), (4, 48)))
    run, _ = compiled(tmp_path, "multiply_in_int8", weight)
    alone = np.concatenate([run({"x": each[None], "shared": identity})[0] for each in x])
    larger = np.array([[1], [1 << 20], [1], [1]], np.float32)
    # Sums of integers are exact; those in float32, where a CPU's integers would overflow, are so up to their order.
    rtol = 1e-5 if saturates_int8_products() else 0
    np.testing.assert_allclose(run({"x": x * larger, "shared": identity})[0], alone * larger, rtol=rtol)


def compiled(
    folder: Path, multiply: str, w: np.ndarray, shared: np.ndarray | None = None, *, products: str = "f32"
) -> tuple[Any, np.ndarray]:
    """PRODUCTS and what has to stay as long, whose weight `w` is rounded; `shared` is not, as it is used twice."""
    from r1v_export.targets.openvino.library import ov
    from r1v_export.targets.openvino.runtime import rounded_weights
    from r1v_export.targets.openvino.runtime.model import session_properties

    onnx.save(onnx.parser.parse_model(PRODUCTS), folder / "products.onnx")
    core = ov.Core()
    model = core.read_model(folder / "products.onnx")
    inputs = {parameter.friendly_name: parameter for parameter in model.get_parameters()}
    multiply_rounded = getattr(rounded_weights, multiply)
    assert shared is None or multiply_rounded(inputs["shared"], shared) is None
    kept = multiply_rounded(inputs["w"], w)
    model.remove_parameter(inputs["w"])
    model.validate_nodes_and_infer_types()
    assert kept is not None
    file = EngineFile(options=OpenVinoConfig(matmul="float32", int4_inputs="exact"), weights={})
    properties = {**session_properties("vision", file, 1), "INFERENCE_PRECISION_HINT": products}
    return core.compile_model(model, "CPU", properties), kept
