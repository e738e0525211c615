"""Small products as one: the same bits, and only where they read the same value in the same way."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from r1v_export.bundle import Bundle
from r1v_export.targets.openvino.doctor import has_bfloat16
from r1v_export.targets.openvino.target import OpenVinoTarget
from tests.targets.openvino.conftest import NEEDS_OPENVINO

pytestmark = NEEDS_OPENVINO
ENGINE = "engines/onnxruntime/decoder/openvino"
INPUTS, GROUP = 256, 128
MODEL = "r1v_export.targets.openvino.runtime.model"
"""Not imported here: it needs OpenVINO."""


def model_of(columns, *, biased=(), group=GROUP, values=("x",), dtype=TensorProto.INT4):
    """Products of values and weights in groups, each an output."""
    from r1v_export.targets.openvino.library import ov

    random = np.random.default_rng(0)
    nodes, constants, outputs = [], [], []
    for index, count in enumerate(columns):
        weights = random.integers(-8, 8, (INPUTS, count)).astype(np.int8)
        scales = random.uniform(0.01, 0.1, (INPUTS // group, count)).astype(np.float32)
        value, biases = values[index % len(values)], random.standard_normal(count).astype(np.float32)
        constants += [
            helper.make_tensor(f"w{index}", dtype, weights.shape, weights.reshape(-1)),
            numpy_helper.from_array(scales, f"s{index}"),
            numpy_helper.from_array(biases, f"b{index}"),
        ]
        nodes += [
            helper.make_node("DequantizeLinear", [f"w{index}", f"s{index}"], [f"d{index}"], axis=0, block_size=group),
            helper.make_node("MatMul", [value, f"d{index}"], [f"p{index}"]),
            # What is added next is a bias where it is a constant, and the next layer's where it is not.
            helper.make_node("Add", [f"p{index}", f"b{index}" if index in biased else "y"], [f"o{index}"]),
        ]
        outputs.append(helper.make_tensor_value_info(f"o{index}", TensorProto.FLOAT, [None, count]))
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, INPUTS]) for name in values]
    inputs.append(helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, 1]))
    graph = helper.make_graph(nodes, "products", inputs, outputs, constants)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])
    onnx.checker.check_model(made)
    return ov.Core().read_model(made.SerializeToString())


def products(model):
    return sum(node.get_type_name() == "MatMul" for node in model.get_ops())


def results(model, rows, rounded_in=GROUP):
    """What an engine computes that rounds inputs to 8 bits in such groups, in none if 0."""
    from r1v_export.targets.openvino.library import ov

    properties = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": rounded_in}
    compiled, random = ov.Core().compile_model(model, "CPU", properties), np.random.default_rng(1)
    widths = {port.any_name: 1 if port.any_name == "y" else INPUTS for port in compiled.inputs}
    inputs = {name: random.standard_normal((rows, width)).astype(np.float32) for name, width in widths.items()}
    return [found.copy() for found in compiled(inputs).values()]


def merged(**given):
    from r1v_export.targets.openvino.runtime.merged_products import merge_small_products

    model = model_of(**given)
    return model, merge_small_products(model)


@pytest.mark.parametrize("rounded_in", [GROUP, 0])
@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize(
    ("given", "left", "merges"),
    [
        ({"columns": (256, 64, 32)}, 1, 1),
        ({"columns": (256, 64, 32), "biased": (0, 1, 2)}, 1, 1),
        ({"columns": (64, 32, 96, 128), "values": ("x", "z")}, 2, 2),
        ({"columns": (64, 32, 96), "biased": (1,)}, 2, 1),
        ({"columns": (64, 32, 96, 4096)}, 2, 1),
    ],
    ids=["all", "biased", "of two values", "one biased", "one large"],
)
def test_results_are_the_same_bits(given, left, merges, rows, rounded_in) -> None:
    model, made = merged(**given)
    assert (products(model), len(made)) == (left, 2 * merges)
    expected = results(model_of(**given), rows, rounded_in)
    for found, wanted in zip(results(model, rows, rounded_in), expected, strict=True):
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize(
    "given",
    [
        {"columns": (64,)},
        {"columns": (64, 4096)},
        {"columns": (64, 33)},
        {"columns": (64, 32), "dtype": TensorProto.INT8},
    ],
    ids=["alone", "large", "odd", "in 8 bits"],
)
def test_other_products_stay(given) -> None:
    model, made = merged(**given)
    assert (products(model), made) == (len(given["columns"]), [])


@pytest.mark.parametrize(("in_tiles", "merges"), [(True, [True, False]), (False, [True])])
def test_steps_with_inputs_in_8_bits_have_products_merged_and_prompts_in_bfloat16_have_none(
    int8_inputs_bundle, monkeypatch, in_tiles, merges
) -> None:
    if not has_bfloat16():
        pytest.skip("this CPU has no bfloat16 products")
    monkeypatch.setattr(f"{MODEL}.has_bfloat16_tiles", lambda: in_tiles)
    bundle = Bundle.open(int8_inputs_bundle)
    engine = OpenVinoTarget().open_decoder(bundle.folder / ENGINE, bundle.folder, bundle.spec)
    decoders = dict.fromkeys(engine._decoders)
    made = [[each for each in decoder.weights.arrays if each.base is None] for decoder in decoders]
    assert [bool(each) for each in made] == merges
    layers = bundle.spec.sizes.layers
    assert len(made[0]) == 2 * 2 * layers  # weights and scales: of q, k and v, and of gate and up
