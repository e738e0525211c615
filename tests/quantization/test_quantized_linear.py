"""Rounding and dequantizing, against the ONNX reference evaluator: the graphs' own definition of Q/DQ."""

from __future__ import annotations

import dataclasses

import hypothesis
import hypothesis.extra.numpy as arrays
import hypothesis.strategies as st
import ml_dtypes
import numpy as np
import onnx
import onnx.helper as oh
import pytest
import torch
from onnx.reference import ReferenceEvaluator

from r1v_export.quantization.quantized_linear import (
    QuantizedLinear,
    quantize,
    quantize_dequantize,
    scale_for,
    token_scale,
)

ONNX_TYPES = {
    "fp8": onnx.TensorProto.FLOAT8E4M3FN,
    "int8": onnx.TensorProto.INT8,
    "int4": onnx.TensorProto.INT4,
    "uint4": onnx.TensorProto.UINT4,
}
NUMPY_TYPES = {"fp8": ml_dtypes.float8_e4m3fn, "int8": np.int8, "int4": ml_dtypes.int4, "uint4": ml_dtypes.uint4}


def onnx_quantize_dequantize(values: np.ndarray, scale: np.ndarray, kind: str) -> np.ndarray:
    """What QuantizeLinear and DequantizeLinear make of `values`, by onnx's own reference evaluator."""
    zero_point = oh.make_tensor("zero_point", ONNX_TYPES[kind], [], [0])
    nodes = [
        oh.make_node("QuantizeLinear", ["x", "scale", "zero_point"], ["qweight"]),
        oh.make_node("DequantizeLinear", ["qweight", "scale", "zero_point"], ["y"]),
    ]
    floats = [oh.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in ("x", "scale", "y")]
    graph = oh.make_graph(nodes, "qdq", floats[:2], floats[2:], [zero_point])
    model = oh.make_model(graph, opset_imports=[oh.make_opsetid("", 24)])
    return ReferenceEvaluator(model).run(None, {"x": values, "scale": scale})[0]


@pytest.mark.parametrize("kind", ["fp8", "int8", "int4"])
@hypothesis.settings(max_examples=60, deadline=None)
@hypothesis.given(
    values=arrays.arrays(np.float32, (7,), elements=st.floats(-1e4, 1e4, width=32)),
    scale=st.floats(2**-10, 2**10, width=32),
)
def test_rounding_is_that_of_onnx(kind: str, values: np.ndarray, scale: float) -> None:
    expected = onnx_quantize_dequantize(values, np.float32(scale), kind)
    found = quantize_dequantize(torch.from_numpy(values), torch.tensor(scale), kind)
    np.testing.assert_array_equal(found.numpy(), expected)


@pytest.mark.parametrize(
    ("kind", "value", "rounded"),
    [
        ("int8", 0.5, 0),
        ("int8", 1.5, 2),
        ("int8", 2.5, 2),
        ("int8", 1000.0, 127),
        ("int8", -1000.0, -128),
        ("fp8", 17.0, 16),  # E4M3 steps by 2 between 16 and 32; 17 and 19 are ties
        ("fp8", 19.0, 20),
        ("fp8", 1e6, 448),
        ("fp8", -1e6, -448),
        ("fp8", 2**-10, 0),  # half of the smallest number
        ("int4", 7.5, 7),
        ("int4", -9.0, -8),
    ],
)
def test_ties_go_to_even_and_overflow_saturates(kind: str, value: float, rounded: float) -> None:
    assert quantize(torch.tensor([value]), torch.tensor(1.0), kind).float().item() == rounded


@pytest.mark.parametrize("kind", ["int8", "int4", "uint4"])
def test_groups_dequantize_as_onnx_does_with_a_block_size(kind: str) -> None:
    generator = np.random.default_rng(0)
    low, high = {"int8": (-128, 128), "int4": (-8, 8), "uint4": (0, 16)}[kind]
    qweight = generator.integers(low, high, (6, 64)).astype(np.int8)
    scale = generator.uniform(0.01, 1, (6, 2)).astype(np.float32)
    zero_point = None if kind != "uint4" else generator.integers(0, 16, (6, 2)).astype(np.int8)
    inputs = ["qweight", "scale"] + ([] if zero_point is None else ["zero_point"])
    node = oh.make_node("DequantizeLinear", inputs, ["y"], axis=1, block_size=32)
    feeds = {"qweight": qweight.astype(NUMPY_TYPES[kind]), "scale": scale}
    if zero_point is not None:
        feeds["zero_point"] = zero_point.astype(NUMPY_TYPES[kind])
    infos = [
        oh.make_tensor_value_info(name, onnx.TensorProto.FLOAT if name == "scale" else ONNX_TYPES[kind], None)
        for name in inputs
    ]
    output = oh.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)
    model = oh.make_model(oh.make_graph([node], "dq", infos, [output]), opset_imports=[oh.make_opsetid("", 24)])
    expected = ReferenceEvaluator(model).run(None, feeds)[0]
    zero_points = None if zero_point is None else torch.from_numpy(zero_point)
    linear = QuantizedLinear(torch.from_numpy(qweight), kind, torch.from_numpy(scale), zero_points, 32)
    np.testing.assert_array_equal(linear.dequantize().numpy(), expected)


def test_columns_in_an_order_of_their_own_multiply_the_input_in_that_order() -> None:
    generator = torch.Generator().manual_seed(0)
    qweight = torch.randint(-8, 8, (6, 64), generator=generator, dtype=torch.int8)
    order = torch.randperm(64, generator=generator).to(torch.int32)
    in_order = QuantizedLinear(qweight, "int4", torch.rand(6, 2, generator=generator) + 0.1, group_size=32)
    linear = dataclasses.replace(in_order, input_order=order)
    assert linear.validate() is None
    x = torch.randn(5, 64, generator=generator, dtype=torch.float64)
    expected = x.numpy()[:, order.numpy()] @ in_order.dequantize().double().numpy().T
    np.testing.assert_allclose((x @ linear.dequantize().double().T).numpy(), expected, rtol=1e-12, atol=1e-12)


def test_each_token_has_its_own_dynamic_scale() -> None:
    x = torch.tensor([[1.0, -448.0], [0.0, 0.0], [0.5, 0.25]])
    assert token_scale(x, "fp8").flatten().tolist() == pytest.approx([1.0, 1.0, 0.5 / 448])


def test_a_threshold_of_zero_has_scale_one() -> None:
    assert scale_for(torch.tensor([0.0, 254.0]), "int8").tolist() == [1.0, 2.0]


def sound() -> QuantizedLinear:
    qweight, zero_point = torch.zeros(4, 64, dtype=torch.int8), torch.zeros(4, 2, dtype=torch.int8)
    return QuantizedLinear(qweight, "uint4", torch.ones(4, 2), zero_point, 32, "fp8", torch.tensor(0.5))


def test_a_sound_linear_has_no_problem() -> None:
    assert sound().validate() is None


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"qweight": torch.zeros(4, 64)}, "values of torch.float32"),
        ({"qweight": torch.zeros(4, 65, dtype=torch.int8)}, "groups of 32 do not divide"),
        ({"scale": torch.ones(4)}, "scales of shape"),
        ({"zero_point": None}, "uint4 weights without zero points"),
        ({"zero_point": torch.zeros(4, 1, dtype=torch.int8)}, "zero points of shape"),
        ({"scale": torch.zeros(4, 2)}, "not a positive, finite number"),
        ({"scale": -torch.ones(4, 2)}, "not a positive, finite number"),
        ({"scale": torch.full((4, 2), torch.nan)}, "not a positive, finite number"),
        ({"input_scale": torch.tensor(torch.inf)}, "not a positive, finite number"),
        ({"input_scale": torch.ones(4)}, "not a scalar"),
        ({"input_type": None}, "none of its inputs quantized"),
        ({"input_order": torch.arange(63, dtype=torch.int32)}, "each of its input features once"),
        ({"input_order": torch.zeros(64, dtype=torch.int32)}, "each of its input features once"),
        ({"input_order": torch.arange(1, 65, dtype=torch.int32)}, "each of its input features once"),
    ],
)
def test_problems_are_found(change: dict[str, object], problem: str) -> None:
    assert problem in (dataclasses.replace(sound(), **change).validate() or "")
