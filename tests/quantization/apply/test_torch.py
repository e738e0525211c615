"""The quantized torch model, against Q/DQ graphs run by the ONNX reference evaluator."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import onnx.helper as oh
import onnx.numpy_helper as onh
import pytest
import torch
from onnx.reference import ReferenceEvaluator

from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.quantization.algorithms.rtn import round_to_nearest
from r1v_export.quantization.apply.torch import FakeQuantCache, FakeQuantLinear, apply
from r1v_export.quantization.kv_scales import CacheType
from r1v_export.quantization.quantized_linear import QuantizedLinear
from r1v_export.reference.model import Model, load

Q_PROJ = "language_model.model.layers.1.self_attn.q_proj"
NORM = "language_model.model.layers.1.input_layernorm.weight"


def qdq_matmul(
    x: np.ndarray, weight: np.ndarray, scale: np.ndarray, input_scale: float, bias: np.ndarray
) -> np.ndarray:
    """x through FP8 Q/DQ, times the FP8 weight through a per-channel DQ, plus the bias."""
    constants = [
        onh.from_array(np.float32(input_scale), "input_scale"),
        oh.make_tensor("zero", onnx.TensorProto.FLOAT8E4M3FN, [], [0]),
        onh.from_array(weight, "weight"),
        onh.from_array(scale, "scale"),
        onh.from_array(bias, "bias"),
    ]
    nodes = [
        oh.make_node("QuantizeLinear", ["x", "input_scale", "zero"], ["x_quantized"]),
        oh.make_node("DequantizeLinear", ["x_quantized", "input_scale"], ["x_rounded"]),
        oh.make_node("DequantizeLinear", ["weight", "scale"], ["weight_rounded"], axis=0),
        oh.make_node("Transpose", ["weight_rounded"], ["weight_T"], perm=[1, 0]),
        oh.make_node("MatMul", ["x_rounded", "weight_T"], ["product"]),
        oh.make_node("Add", ["product", "bias"], ["y"]),
    ]
    x_info, y_info = (oh.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in ("x", "y"))
    graph = oh.make_graph(nodes, "linear", [x_info], [y_info], constants)
    model = oh.make_model(graph, opset_imports=[oh.make_opsetid("", 24)])
    return ReferenceEvaluator(model).run(None, {"x": x})[0]


def test_a_static_fp8_linear_computes_what_its_graph_does() -> None:
    generator = torch.Generator().manual_seed(0)
    weight, bias = torch.randn(8, 32, generator=generator), torch.randn(8, generator=generator)
    x = torch.randn(5, 32, generator=generator) * 3
    linear = round_to_nearest(weight, "fp8")
    static = QuantizedLinear(linear.qweight, "fp8", linear.scale, input_type="fp8", input_scale=torch.tensor(4 / 448))
    qweight = linear.qweight.view(torch.uint8).numpy().view(ml_dtypes.float8_e4m3fn)
    expected = qdq_matmul(x.numpy(), qweight, linear.scale.numpy(), 4 / 448, bias.numpy())
    np.testing.assert_allclose(FakeQuantLinear(static, bias)(x).numpy(), expected, rtol=1e-6, atol=1e-5)


def test_a_dynamic_linear_does_not_depend_on_the_scale_of_a_token() -> None:
    x = torch.randn(3, 32, generator=torch.Generator().manual_seed(1))
    weight_only = round_to_nearest(torch.eye(32), "fp8")
    dynamic = FakeQuantLinear(QuantizedLinear(weight_only.qweight, "fp8", weight_only.scale, input_type="fp8"))
    torch.testing.assert_close(dynamic(x * 1024), dynamic(x) * 1024)
    assert not torch.equal(dynamic(x), x)


def test_a_weight_only_linear_leaves_its_input_alone() -> None:
    x = torch.randn(3, 32, generator=torch.Generator().manual_seed(1))
    weight_only = FakeQuantLinear(round_to_nearest(torch.eye(32), "fp8"))
    torch.testing.assert_close(weight_only(x), x)


@pytest.mark.parametrize(("kind", "dtype"), [("fp8", ml_dtypes.float8_e4m3fn), ("int8", np.int8)])
def test_a_cache_holds_quantized_values_of_its_type(kind: CacheType, dtype: type) -> None:
    x = torch.randn(2, 3, 5, 8, generator=torch.Generator().manual_seed(2))
    scale = np.float32(float(x.abs().max()) / {"fp8": 448, "int8": 127}[kind])
    scaled = x.numpy() / scale
    qweight = (np.rint(scaled) if kind == "int8" else scaled).astype(dtype)
    found = FakeQuantCache(float(scale), kind)(x)
    np.testing.assert_array_equal(found.numpy(), qweight.astype(np.float32) * scale)
    assert not torch.equal(found, x)
    assert len(found.unique()) > 50


@pytest.fixture
def model(synth_checkpoint: Checkpoint) -> Model:
    return load(synth_checkpoint)


def test_linears_and_overrides_go_to_their_names(model: Model) -> None:
    original = model.get_submodule(Q_PROJ)
    linear = round_to_nearest(original.weight.data, "int8")
    apply(model, {Q_PROJ: linear}, {NORM: torch.full((model.spec.language.hidden_size,), 0.5)})
    replaced = model.get_submodule(Q_PROJ)
    assert isinstance(replaced, FakeQuantLinear)
    assert torch.equal(replaced.weight, linear.dequantize())
    assert torch.equal(replaced.bias, original.bias)
    assert (model.get_parameter(NORM) == 0.5).all()


def test_a_block_takes_only_what_is_inside_it(model: Model) -> None:
    prefix = "language_model.model.layers.1."
    block = model.get_submodule(prefix.removesuffix("."))
    linear = round_to_nearest(block.self_attn.q_proj.weight.data, "int8")
    elsewhere = {Q_PROJ.replace("layers.1.", "layers.11."): linear, Q_PROJ.replace("layers.1.", "layers.0."): linear}
    apply(block, {Q_PROJ: linear} | elsewhere, {}, prefix)
    assert isinstance(block.self_attn.q_proj, FakeQuantLinear)
    assert isinstance(model.language_model.model.layers[0].self_attn.q_proj, torch.nn.Linear)
