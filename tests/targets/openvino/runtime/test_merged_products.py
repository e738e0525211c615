"""Small products as one: the same bits, and only where they read the same value in the same way."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from r1v_export.runner.kv_cache import KVCache
from r1v_export.targets.openvino.doctor import has_bfloat16
from tests.targets.openvino.conftest import NEEDS_OPENVINO

pytestmark = NEEDS_OPENVINO
INPUTS, GROUP = 256, 128
MODEL = "r1v_export.targets.openvino.runtime.model"
"""Not imported here: it needs OpenVINO."""


def model_of(columns, *, biased=(), groups=(GROUP,), values=("x",), dtype=TensorProto.INT4, read_twice=(), bias=None):
    """Products of values and weights in groups, each an output behind an addition.

    Args:
        biased: to which of them a constant is added; another input to the rest.
        groups: inputs that share a scale, by turns.
        values: what is multiplied, by turns.
        read_twice: which of them are an output themselves, too.
        bias: the shape of constants, if it is not [columns].
    """
    from r1v_export.targets.openvino.library import ov

    random = np.random.default_rng(0)
    nodes, constants, outputs = [], [], []
    for index, count in enumerate(columns):
        group, value = groups[index % len(groups)], values[index % len(values)]
        weights = random.integers(0 if dtype == TensorProto.UINT4 else -8, 8, (INPUTS, count)).astype(np.int8)
        scales = random.uniform(0.01, 0.1, (INPUTS // group, count)).astype(np.float32)
        constants += [
            helper.make_tensor(f"w{index}", dtype, weights.shape, weights.reshape(-1)),
            numpy_helper.from_array(scales, f"s{index}"),
            numpy_helper.from_array(random.standard_normal(bias or count).astype(np.float32), f"b{index}"),
        ]
        operands = [f"p{index}", f"b{index}" if index in biased else "y"]
        nodes += [
            helper.make_node("DequantizeLinear", [f"w{index}", f"s{index}"], [f"d{index}"], axis=0, block_size=group),
            helper.make_node("MatMul", [value, f"d{index}"], [f"p{index}"]),
            helper.make_node("Add", operands if index % 2 else operands[::-1], [f"o{index}"]),
        ]
        outputs += [f"o{index}", *([f"p{index}"] if index in read_twice else [])]
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, INPUTS]) for name in values]
    inputs.append(helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, 1]))
    results = [
        helper.make_tensor_value_info(each, TensorProto.FLOAT, [None, columns[int(each[1:])]]) for each in outputs
    ]
    graph = helper.make_graph(nodes, "products", inputs, results, constants)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])
    onnx.checker.check_model(made)
    return ov.Core().read_model(made.SerializeToString())


def products(model):
    return sum(node.get_type_name() == "MatMul" for node in model.get_ops())


def results(model, rows):
    """What an engine computes that rounds inputs to 8 bits."""
    from r1v_export.targets.openvino.library import ov

    properties = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": GROUP}
    compiled, random = ov.Core().compile_model(model, "CPU", properties), np.random.default_rng(1)
    widths = {port.any_name: 1 if port.any_name == "y" else INPUTS for port in compiled.inputs}
    inputs = {name: random.standard_normal((rows, width)).astype(np.float32) for name, width in widths.items()}
    return [found.copy() for found in compiled(inputs).values()]


def merged(**given):
    from r1v_export.targets.openvino.runtime.merged_products import merge_small_products

    model = model_of(**given)
    return model, merge_small_products(model)


@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize(
    ("given", "left", "merges"),
    [
        ({"columns": (256, 64, 32)}, 1, 1),
        ({"columns": (256, 64, 32), "biased": (0, 1, 2)}, 1, 1),
        ({"columns": (64, 32, 96, 128), "values": ("x", "z")}, 2, 2),
        ({"columns": (64, 32, 96), "biased": (1,)}, 2, 1),
        ({"columns": (64, 32, 96, 4096)}, 2, 1),
        ({"columns": (64, 32, 96, 128), "groups": (128, 64)}, 2, 2),
        ({"columns": (64, 32, 96), "biased": (0, 1, 2), "read_twice": (1,)}, 2, 1),
        ({"columns": (64, 32), "biased": (0, 1), "bias": 1}, 1, 1),
    ],
    ids=["all", "biased", "two values", "one biased", "one large", "other groups", "read twice", "one bias for all"],
)
def test_results_are_the_same_bits(given, left, merges, rows) -> None:
    model, made = merged(**given)
    assert (products(model), len(made)) == (left, 2 * merges)
    expected = results(model_of(**given), rows)
    for found, wanted in zip(results(model, rows), expected, strict=True):
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize(
    "given",
    [
        {"columns": (64,)},
        {"columns": (64, 4096)},
        {"columns": (64, 33)},
        {"columns": (64, 32), "dtype": TensorProto.INT8},
        {"columns": (64, 32), "dtype": TensorProto.UINT4},
    ],
    ids=["alone", "large", "odd", "in 8 bits", "unsigned"],
)
def test_other_products_stay(given) -> None:
    model, made = merged(**given)
    assert (products(model), made) == (len(given["columns"]), [])


@pytest.mark.parametrize("in_tiles", [True, False])
def test_steps_with_inputs_in_8_bits_have_merged_products_and_prompts_in_bfloat16_have_none(
    open_int8_inputs, monkeypatch, in_tiles
) -> None:
    if not has_bfloat16():
        pytest.skip("this CPU has no bfloat16 products")
    from r1v_export.targets.openvino.runtime.merged_products import merge_small_products

    made = []

    def recorded(model):
        made.append(merge_small_products(model))
        return made[-1]

    monkeypatch.setattr(f"{MODEL}.has_bfloat16_tiles", lambda: in_tiles)
    monkeypatch.setattr(f"{MODEL}.merge_small_products", recorded)
    opened = open_int8_inputs()
    steps, prompts, *_ = opened._decoder_graphs
    assert (steps is prompts) == (not in_tiles)
    (arrays,) = made  # of one graph
    assert len(arrays) == 2 * 2 * opened.sizes.layers  # weights and scales: of q, k and v, and of gate and up
    held = {id(each) for each in steps.weights.arrays}
    assert held >= {id(each) for each in arrays}


def test_a_decoder_computes_the_same_bits(open_int8_inputs, monkeypatch) -> None:
    logits = []
    for merge in (True, False):
        with monkeypatch.context() as patch:
            if not merge:
                patch.setattr(f"{MODEL}.merge_small_products", lambda model: [])
            opened = open_int8_inputs()
            cache, hidden = KVCache(opened.decoder(3, 200)), opened.sizes.hidden
        random = np.random.default_rng(2)
        logits.append([])
        for counts in ([150, 20, 7], [1, 1, 1], [1, 9, 40]):
            new = random.standard_normal((3, max(counts), hidden)).astype(np.float32)
            logits[-1].append(cache.append(new, np.array(counts)))
    for merged_here, alone in zip(*logits, strict=True):
        np.testing.assert_array_equal(merged_here, alone)


def test_one_sequence_has_merged_products_and_computes_what_several_rows_do(open_int8_inputs, monkeypatch) -> None:
    if not has_bfloat16():
        pytest.skip("this CPU has no bfloat16 products")
    monkeypatch.setattr(f"{MODEL}.has_bfloat16_tiles", lambda: True)
    opened, logits = open_int8_inputs(), []
    for decoder in (opened.one_sequence_decoder(200), opened.decoder(1, 200)):
        random, cache = np.random.default_rng(2), KVCache(decoder)
        logits.append([])
        for count in (150, *[1] * 12):
            new = random.standard_normal((1, count, opened.sizes.hidden)).astype(np.float32)
            logits[-1].append(cache.append(new, np.array([count])))
    one, several = opened._one_sequence_graphs, opened._decoder_graphs
    assert one.one_token
    assert len(one.steps.weights.arrays) == len(several.steps.weights.arrays)
    differences = [np.linalg.norm(a - b) / np.linalg.norm(b) for a, b in zip(*logits, strict=True)]
    assert differences[0] == 0  # the same graph for prompts
    # Sums in another order move values over the edge between two 8-bit numbers.
    assert np.median(differences[1:]) < 0.1, differences
