"""`graphs/` is what we emit: every graph is traced again and must give the committed text to the byte.

After a deliberate change: `pytest tests/exporters/test_golden.py --update-golden`, then read the diff.
"""

from __future__ import annotations

import re
from pathlib import Path

import onnx_ir as ir
import pytest
import torch

from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.checkpoint.synth import synthesize
from r1v_export.exporters import export
from r1v_export.model_spec import ModelSpec
from r1v_export.quantization.apply.onnx import QuantizeLinears
from r1v_export.quantization.groups import linear_groups
from r1v_export.quantization.recipe import PRESETS, load, resolve
from tests.exporters.graph_text import dump

GRAPHS = Path(__file__).parents[2] / "graphs"
COMPUTE = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp8": torch.float32, "int4": torch.float32}
CASES = [
    *(
        (model, precision, graph)
        for model, precision in (("r1v-nano", "fp32"), ("r1v3-38b", "bf16"))
        for graph in export.SOURCES
    ),
    # Of quantized builds, the graphs that quantization changes.
    *(("r1v-nano", "fp8", graph) for graph in ("vision", "projector", "decoder")),
    ("r1v-nano", "int4", "decoder"),
]


@pytest.fixture(scope="module")
def specs(tmp_path_factory) -> dict[str, ModelSpec]:
    """The shipped model's, and the full 38B's: opened from a checkpoint of the true size whose weights are holes."""
    sparse = synthesize(tmp_path_factory.mktemp("38b"), preset="r1v3-38b", weights="empty")
    return {"r1v-nano": Checkpoint.open(None).spec, "r1v3-38b": Checkpoint.open(sparse).spec}


def quantized(traced: ir.Model, spec: ModelSpec, precision: str) -> None:
    """As the precision's recipe says. The pass needs no scale: those are bound afterwards, as weights are."""
    group_of = {name: group.name for group in linear_groups(spec) for name in group.linears}
    QuantizeLinears(resolve(load(PRESETS[precision]), spec), group_of)(traced)


@pytest.mark.slow
@pytest.mark.parametrize(("model", "precision", "graph"), CASES)
def test_the_graph_is_what_the_golden_text_says(model, precision, graph, specs, request):
    golden = GRAPHS / model / precision / f"{graph}.txt"
    traced = export.trace_graph(graph, specs[model], COMPUTE[precision])
    if precision in PRESETS:
        quantized(traced, specs[model], precision)
    text = dump(traced)
    if request.config.getoption("--update-golden"):
        golden.parent.mkdir(parents=True, exist_ok=True)
        golden.write_text(text)
    assert text == golden.read_text(), f"{golden} differs from what is exported now"


def test_layers_that_are_alike_are_printed_once():
    text = (GRAPHS / "r1v3-38b" / "bf16" / "decoder.txt").read_text()
    assert "-- layers 1 ... 62: alike but for i, the layer's number" in text
    assert text.count("self_attn/Attention bfloat16[batch, 40, seq, 128] = Attention(") == 3


def test_the_last_layer_computes_what_the_logits_need() -> None:
    text = (GRAPHS / "r1v3-38b" / "bf16" / "decoder.txt").read_text()
    for linear in ("o_proj", "gate_proj", "up_proj", "down_proj"):
        (line,) = (line for line in text.splitlines() if re.match(rf"\S+\.63\.\S+\.{linear}/MatMul ", line))
        assert "[batch, logit_positions, " in line
    assert re.search(r"\.63\.self_attn\.k_proj/MatMul bfloat16\[batch, seq, ", text), "the cache has every token"
