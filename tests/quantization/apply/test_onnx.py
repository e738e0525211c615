"""The Q/DQ graphs compute what the torch fake-quant model computes, up to the order of float32 sums."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch

from r1v_export.exporters import export
from r1v_export.exporters.export import export_graph
from r1v_export.quantization.algorithms.rtn import round_to_nearest
from r1v_export.quantization.apply.onnx import QuantizeLinears, quantizer
from r1v_export.quantization.apply.torch import apply
from r1v_export.quantization.groups import linear_groups
from r1v_export.quantization.quantized_linear import QuantizedLinear
from r1v_export.quantization.recipe import Recipe, Scheme, resolve
from r1v_export.reference.model import ReferenceEngine
from tests.tiny_models import checkpoint_of, random_model, tiny_spec

SPEC = tiny_spec()
MODEL = random_model(SPEC)
CHECKPOINT = checkpoint_of(MODEL)
RNG = np.random.default_rng(0)
INPUTS = {
    "vision": {"pixel_values": RNG.standard_normal((2, 3, 56, 56), dtype=np.float32)},
    "projector": {"vision_features": RNG.standard_normal((2, 4, 256), dtype=np.float32)},
}


def schemes_of(kind: str, group_size: int | None, inputs: str | None, mode: str = "static") -> dict[str, Scheme]:
    weights = {"type": kind, "granularity": "group" if group_size else "channel", "algorithm": "rtn"}
    if group_size:
        weights["group_size"] = group_size
    scheme = {"weights": weights, "inputs": inputs and {"type": inputs, "mode": mode}}
    return resolve(
        Recipe.model_validate({"name": "t", "description": "t", "rules": [{"modules": "*", "scheme": scheme}]}), SPEC
    )


def rounded(schemes: dict[str, Scheme]) -> dict[str, QuantizedLinear]:
    linears = {}
    for name, scheme in schemes.items():
        linear = round_to_nearest(CHECKPOINT.tensors[f"{name}.weight"], scheme.weights.type, scheme.weights.group_size)
        if scheme.inputs is not None:
            linear = replace(linear, input_type=scheme.inputs.type, input_scale=torch.tensor(0.02))
        linears[name] = linear
    return linears


def run(path, inputs) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    # Fused kernels compute otherwise (int4 with int8 activations); here the graph itself is on trial.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"]).run(None, inputs)[0]


@pytest.mark.parametrize("graph", INPUTS)
@pytest.mark.parametrize(
    ("kind", "group_size", "inputs"),
    [
        ("fp8", None, "fp8"),
        ("fp8", None, None),
        ("int8", None, "int8"),
        ("int4", 32, None),
        ("uint4", 64, None),
        ("int4", 32, "fp8"),
    ],
)
def test_the_graph_computes_what_the_fake_quant_model_computes(graph, kind, group_size, inputs, tmp_path):
    schemes = schemes_of(kind, group_size, inputs)
    linears = rounded(schemes)
    fake = copy.deepcopy(MODEL)
    apply(fake, linears, {})
    path = export_graph(
        graph, CHECKPOINT, tmp_path, torch.float32, rewrite=quantizer(SPEC, schemes, linears.__getitem__, {})
    )
    onnx.checker.check_model(path, full_check=True)
    expected = getattr(ReferenceEngine(fake), graph)(*INPUTS[graph].values())
    result = run(path, INPUTS[graph])
    if graph == "vision" and inputs:
        # An input halfway between two quantized values rounds to either one for a 1e-7 difference before it: in two
        # blocks that is noise of the size of one step here and there, not of a wrong scale (see docs of parity).
        assert np.linalg.norm(result - expected) < 2e-2 * np.linalg.norm(expected)
    else:
        np.testing.assert_allclose(result, expected, atol=2e-5)
    unquantized = getattr(ReferenceEngine(MODEL), graph)(*INPUTS[graph].values())
    assert np.abs(expected - unquantized).max() > 1e-2, "nothing was quantized"


@pytest.mark.parametrize("inputs", [None, "fp8"])
def test_an_imported_linear_multiplies_its_input_first(inputs, tmp_path):
    weights = {
        "type": "int4",
        "granularity": "group",
        "group_size": 32,
        "algorithm": "imported",
        "pre_quant_scale": True,
    }
    scheme = Scheme.model_validate({"weights": weights, "inputs": inputs and {"type": inputs, "mode": "static"}})
    schemes = {"mlp1.3": scheme}
    pre_quant_scale = torch.rand(SPEC.projector.hidden_size, generator=torch.Generator().manual_seed(0)) + 0.5
    linears = {name: replace(linear, pre_quant_scale=pre_quant_scale) for name, linear in rounded(schemes).items()}
    fake = copy.deepcopy(MODEL)
    apply(fake, linears, {})
    rewrite = quantizer(SPEC, schemes, linears.__getitem__, {})
    path = export_graph("projector", CHECKPOINT, tmp_path, torch.float32, rewrite=rewrite)
    onnx.checker.check_model(path, full_check=True)
    expected = ReferenceEngine(fake).projector(*INPUTS["projector"].values())
    np.testing.assert_allclose(run(path, INPUTS["projector"]), expected, atol=2e-5)
    apply(fake, {name: replace(linear, pre_quant_scale=None) for name, linear in linears.items()}, {})
    assert np.abs(expected - ReferenceEngine(fake).projector(*INPUTS["projector"].values())).max() > 1e-2


def test_imported_int8_weights_in_groups_are_dequantized_by_standard_operators(tmp_path):
    weights = {"type": "int8", "granularity": "group", "group_size": 32, "algorithm": "imported"}
    schemes = dict.fromkeys(("mlp1.1", "mlp1.3"), Scheme.model_validate({"weights": weights}))
    linears = rounded(schemes)
    fake = copy.deepcopy(MODEL)
    apply(fake, linears, {})
    rewrite = quantizer(SPEC, schemes, linears.__getitem__, {})
    path = export_graph("projector", CHECKPOINT, tmp_path, torch.float32, rewrite=rewrite)
    onnx.checker.check_model(path, full_check=True)
    expected = ReferenceEngine(fake).projector(*INPUTS["projector"].values())
    np.testing.assert_allclose(run(path, INPUTS["projector"]), expected, atol=2e-5)
    graph = ir.load(path).graph
    assert {node.domain for node in graph} == {""}
    for name, linear in linears.items():
        stored = graph.initializers[f"{name}.weight.T.qweight"].const_value
        assert stored.dtype == ir.DataType.INT8
        np.testing.assert_array_equal(stored.numpy(), linear.qweight.T.numpy())


def in_act_order(linears: dict[str, QuantizedLinear], seeds: dict[str, int]) -> dict[str, QuantizedLinear]:
    """The linears with columns in a random order, equal where the seed and the size are."""
    orders = {
        name: torch.randperm(linear.shape[1], generator=torch.Generator().manual_seed(seeds[name])).to(torch.int32)
        for name, linear in linears.items()
    }
    return {name: replace(linear, input_order=orders[name]) for name, linear in linears.items()}


def act_order_schemes(*names: str) -> dict[str, Scheme]:
    weights = {"type": "int4", "granularity": "group", "group_size": 32, "algorithm": "imported", "act_order": True}
    return dict.fromkeys(names, Scheme.model_validate({"weights": weights}))


def orders_of(linears: dict[str, QuantizedLinear]) -> dict[str, torch.Tensor]:
    return {name: linear.input_order for name, linear in linears.items()}


def test_columns_in_an_order_of_their_own_have_their_input_gathered(tmp_path):
    schemes = act_order_schemes("mlp1.1", "mlp1.3")
    linears = in_act_order(rounded(schemes), {"mlp1.1": 1, "mlp1.3": 2})
    fake = copy.deepcopy(MODEL)
    apply(fake, linears, {})
    rewrite = quantizer(SPEC, schemes, linears.__getitem__, {}, input_orders=orders_of(linears))
    path = export_graph("projector", CHECKPOINT, tmp_path, torch.float32, rewrite=rewrite)
    onnx.checker.check_model(path, full_check=True)
    expected = ReferenceEngine(fake).projector(*INPUTS["projector"].values())
    np.testing.assert_allclose(run(path, INPUTS["projector"]), expected, atol=2e-5)
    apply(fake, {name: replace(linear, input_order=None) for name, linear in linears.items()}, {})
    assert np.abs(expected - ReferenceEngine(fake).projector(*INPUTS["projector"].values())).max() > 1e-2


def test_linears_that_read_one_tensor_in_one_order_share_its_gather():
    layer = "language_model.model.layers.0"
    names = [f"{layer}.self_attn.{part}_proj" for part in "qkvo"]
    schemes = act_order_schemes(*names)
    linears = in_act_order(rounded(schemes), dict(zip(names, (1, 2, 1, 1), strict=True)))
    model = export.trace_graph("decoder", SPEC, torch.float32)
    quantizer(SPEC, schemes, linears.__getitem__, {}, input_orders=orders_of(linears))(model)
    gathers = [node for node in model.graph if node.op_type == "Gather" and "input_order" in node.inputs[1].name]
    readers = [[user.inputs[1].name.split(".")[-3] for user in node.outputs[0].consumers()] for node in gathers]
    assert sorted(readers) == [["k_proj"], ["o_proj"], ["q_proj", "v_proj"]]


def test_rewritten_tensors_take_the_place_of_the_checkpoints(tmp_path):
    name = "mlp1.0.weight"
    doubled = {name: lambda: CHECKPOINT.tensors[name] * 2}
    path = export_graph("projector", CHECKPOINT, tmp_path, torch.float32, rewrite=quantizer(SPEC, {}, {}.get, doubled))
    written = ir.load(path).graph.initializers[name].const_value
    np.testing.assert_array_equal(written.numpy(), 2 * CHECKPOINT.tensors[name].numpy())


def pass_over(graph: str, schemes: dict[str, Scheme], compute=torch.float32) -> ir.Model:
    model = export.trace_graph(graph, SPEC, compute)
    QuantizeLinears(schemes, {name: group.name for group in linear_groups(SPEC) for name in group.linears})(model)
    return model


def test_linears_that_read_one_tensor_share_its_quantization():
    model = pass_over("decoder", schemes_of("fp8", None, "fp8"))
    layer0 = [n for n in model.graph if n.op_type == "QuantizeLinear" and "layers.0" in n.name]
    assert len(layer0) == 4, "one each for q/k/v, o, gate/up and down"
    assert len([n for n in model.graph if n.op_type == "DequantizeLinear" and "layers.0" in n.name]) == 4 + 7


def test_only_what_the_recipe_names_is_quantized():
    model = pass_over("decoder", schemes_of("int4", 32, None))
    assert "language_model.lm_head.weight.T" in model.graph.initializers
    assert "language_model.model.layers.0.self_attn.q_proj.weight.T" not in model.graph.initializers


@pytest.mark.parametrize("compute", [torch.float16, torch.bfloat16], ids=str)
def test_16_bit_graphs_keep_float32_scales_and_their_own_type_elsewhere(compute):
    model = pass_over("projector", schemes_of("fp8", None, "fp8"), compute)
    matmuls = [node for node in model.graph if node.op_type == "MatMul"]
    assert matmuls
    assert {value.dtype for node in matmuls for value in node.inputs} == {matmuls[0].outputs[0].dtype}
    assert model.graph.initializers["mlp1.1.weight.T.scale"].dtype == ir.DataType.FLOAT


@pytest.mark.parametrize("graph", INPUTS)
@pytest.mark.parametrize(
    ("kind", "group_size", "inputs"), [("fp8", None, "fp8"), ("int8", None, "int8"), ("int4", 32, "fp8")]
)
def test_dynamic_inputs_are_rounded_as_the_fake_quant_model_rounds_them(graph, kind, group_size, inputs, tmp_path):
    schemes = schemes_of(kind, group_size, inputs, "dynamic")
    linears = {name: replace(linear, input_scale=None) for name, linear in rounded(schemes).items()}
    fake = copy.deepcopy(MODEL)
    apply(fake, linears, {})
    rewrite = quantizer(SPEC, schemes, linears.__getitem__, {})
    path = export_graph(graph, CHECKPOINT, tmp_path, torch.float32, rewrite=rewrite)
    onnx.checker.check_model(path, full_check=True)
    expected = getattr(ReferenceEngine(fake), graph)(*INPUTS[graph].values())
    result = run(path, INPUTS[graph])
    if graph == "vision":  # see above: noise of the size of one step here and there
        assert np.linalg.norm(result - expected) < 2e-2 * np.linalg.norm(expected)
    else:
        np.testing.assert_allclose(result, expected, atol=2e-5)
