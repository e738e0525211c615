"""What a plan of memory knows of a target's engine."""

from __future__ import annotations

from typing import Any

import pytest

from r1v_export.config import BuildConfig, ParityConfig
from r1v_export.contract import GRAPHS, PROJECTOR, VISION
from r1v_export.pipeline.held_weights import GRAPH_OF, HeldWeights
from r1v_export.pipeline.streamed_gate_memory import StreamedMemory
from tests.tiny_models import tiny_spec

OF_TOWER = (VISION, PROJECTOR)


@pytest.mark.parametrize(
    ("target", "fields", "expected"),
    [
        ("onnxruntime", {"precision": "int4"}, HeldWeights(packed=True, graphs=GRAPHS, rounded_head=True)),
        ("onnxruntime", {"precision": "fp8"}, HeldWeights(packed=True, graphs=GRAPHS)),
        ("onnxruntime", {"precision": "fp16"}, HeldWeights(packed=True, graphs=GRAPHS, half_precision=True)),
        (
            "onnxruntime",
            {"precision": "fp32", "device": "cuda"},
            HeldWeights(packed=True, graphs=GRAPHS, in_memory=False),
        ),
        (
            "tensorrt-llm",
            {"precision": "int4"},
            HeldWeights(unpacks_whole_blocks=True, graphs=OF_TOWER, half_precision=True),
        ),
        ("gguf", {"precision": "int8"}, HeldWeights(half_precision=True)),
        ("hf-unified", {"precision": "fp8"}, HeldWeights(half_precision=True)),
    ],
)
def test_what_targets_hold(target: str, fields: dict[str, Any], expected: HeldWeights) -> None:
    assert HeldWeights.of(BuildConfig(targets=[target], **fields), target, tiny_spec()) == expected


def test_weights_that_gguf_rounds_itself_have_one_reference() -> None:
    config = BuildConfig(precision="int4", targets={"gguf": {"model": "Q4_K_M"}})
    held = HeldWeights.of(config, "gguf", tiny_spec())
    assert held.own_weights
    parts = StreamedMemory(tiny_spec(), {}, ParityConfig(), held).parts
    assert {part.partition("/")[2] for part in parts} == {"quantization", "engine"}


def test_every_block_of_a_model_has_a_graph() -> None:
    planned = StreamedMemory(tiny_spec(), {}, ParityConfig(), HeldWeights())
    assert planned.blocks.keys() | {"vision_features"} == GRAPH_OF.keys()
    assert set(GRAPH_OF.values()) < set(GRAPHS)
