"""The table of CUDA kernels against every graph that is lowered, and against what the real provider made of them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch

from r1v_export import contract
from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.errors import CapabilityError
from r1v_export.exporters import export
from r1v_export.quantization.apply.onnx import QuantizeCache, QuantizeLinears
from r1v_export.quantization.groups import linear_groups
from r1v_export.quantization.recipe import load, resolve
from r1v_export.targets.onnxruntime.cuda_kernels import missing_kernels, require_kernels
from r1v_export.targets.onnxruntime.lower import lower
from tests.targets.onnxruntime.lower.graphs import model
from tests.tiny_models import tiny_spec

RESULTS = sorted((Path(__file__).parents[3] / "benchmarks/results").glob("*-onnxruntime-cuda-placements.json"))
RECIPES = ("fp8", "fp8-tensor", "fp8-kv", "int8-smoothquant", "int8-kv", "int4-rtn", "int4-gptq", "int4-awq", "mixed")
SPECS = {
    "r1v-nano": Checkpoint.open().spec,
    "InternViT-300M": tiny_spec(
        norm="layer_norm",
        qk_norm=False,
        qkv_bias=True,
        tie_word_embeddings=True,
        language={"hidden_size": 128, "num_heads": 8},
    ),
}
SHAPE_ARITHMETIC = {"Shape", "Gather", "Squeeze", "Unsqueeze", "Reshape", "Concat", "Slice", "Cast"}
"""What ONNX Runtime chooses to compute on the CPU, although there are CUDA kernels: a few integers."""


def exported(graph: str, spec_name: str, precision: str) -> ir.Model:
    """A graph as a build for CUDA exports it, but for the weights."""
    spec = SPECS[spec_name]
    compute = torch.float32 if precision == "fp32" else torch.float16
    made = export.trace_graph(graph, spec, compute)
    if precision in ("fp32", "fp16"):
        return made
    recipe = load(precision)
    group_of = {name: group.name for group in linear_groups(spec) for name in group.linears}
    QuantizeLinears(resolve(recipe, spec), group_of, group_of)(made)
    if recipe.kv_cache is not None and graph == contract.DECODER:
        attentions = [f"language_model.model.layers.{layer}.self_attn" for layer in range(spec.language.num_layers)]
        QuantizeCache(dict.fromkeys(attentions, recipe.kv_cache))(made)
    return made


@pytest.mark.parametrize("graph", contract.GRAPHS)
@pytest.mark.parametrize("precision", ["fp32", "fp16", *RECIPES, "w4a8"])
@pytest.mark.parametrize("spec", SPECS)
def test_every_node_of_a_graph_lowered_for_cuda_has_a_kernel_of_its_types(graph, precision, spec):
    made = exported(graph, spec, precision)
    lower(made, "cuda")
    assert list(missing_kernels(made)) == []


def test_what_the_standard_graph_would_leave_to_the_cpu_is_named():
    made = exported("projector", "r1v-nano", "fp8")
    assert {each.operator for each in missing_kernels(made)} == {"QuantizeLinear", "DequantizeLinear"}
    with pytest.raises(CapabilityError, match="CPU, at every run") as error:
        require_kernels(made, "projector")
    assert error.value.where == "projector: mlp1.1/QuantizeLinear (and 3 other nodes)"
    assert error.value.found == "QuantizeLinear of T1 float16, T2 float, T3 float8e4m3fn"
    assert str(error.value.expected).startswith("T1 float, T2 float, T3 float8e4m3fn; ")
    assert "--precision fp16" in str(error.value.fix)


HEADER = '<ir_version: 11, opset_import: ["": 24, "com.microsoft": 1]>'


@pytest.mark.parametrize(
    ("body", "missing"),
    [
        ("y = Det(x)", ["Det"]),  # of no types at all
        ("y = Swish(x)", ["Swish"]),
        ("y = Sigmoid(x)", []),
        ("q = Cast <to=11> (x)  y = Cast <to=1> (q)", []),
        ("y = com.microsoft.NoSuchOperator(x)", ["com.microsoft::NoSuchOperator"]),
    ],
)
def test_an_operator_without_a_kernel_is_missing(body, missing):
    made = model(f"{HEADER} g (float[2,2] x) => (float[2,2] y) {{ {body} }}")
    assert [each.operator for each in missing_kernels(made)] == missing


def test_types_of_results_that_say_none_follow_from_those_of_the_inputs():
    made = model(f"{HEADER} g (bfloat16[2,2] x) => (bfloat16[2,2] y) {{ a = Neg(x)  b = Ceil(a)  y = Neg(b) }}")
    assert [(each.operator, each.found) for each in missing_kernels(made)] == [("Ceil", "T bfloat16")]


def test_constants_need_a_kernel_of_the_cpu_which_folds_them():
    """In float16 the CPU multiplies nothing: ONNX Runtime would multiply the weights again in every run."""
    half, wide = np.ones((4, 4), np.float16), np.ones((4, 4), np.float32)
    text = f"{HEADER} g (KIND[2,4] x) => (KIND[2,4] y) {{ c = Mul(a, b)  y = MatMul(x, c) }}"
    assert [each.operator for each in missing_kernels(model(text.replace("KIND", "float16"), a=half, b=half))] == [
        "Mul"
    ]
    assert list(missing_kernels(model(text.replace("KIND", "float"), a=wide, b=wide))) == []


@pytest.mark.parametrize("result", RESULTS, ids=lambda path: path.name)
def test_the_real_provider_took_every_node_but_a_few_integers(result):
    """benchmarks/onnxruntime_cuda.py: the real onnxruntime-gpu, on a stand-in for the CUDA libraries."""
    bundles = json.loads(result.read_text())["bundles"]
    assert {"fp32", "fp16", "w4a8", *RECIPES} == bundles.keys()
    for precision, graphs in bundles.items():
        for graph, placed in graphs.items():
            assert "refused" not in placed, (precision, graph)
            assert {node.split()[0] for node in placed["on_cpu"]} <= SHAPE_ARITHMETIC, (precision, graph)
            kinds = {"fp8": "MatMulBlockQuantizedFp8Weight", "int4": "MatMulNBits"}
            expected = kinds.get(precision.split("-")[0]) if graph == "decoder" else None
            assert expected is None or expected in placed["operators"], (precision, graph)


def test_there_are_placements_of_the_real_provider():
    assert RESULTS
