"""What other runtimes take, as data of a version, against what is written for them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.checkpoint.config import ARCHITECTURES
from r1v_export.checkpoint.hub_files import readable_config
from r1v_export.checkpoint.presets import PRESETS
from r1v_export.checkpoint.quantized.unified import ALGORITHMS, MIXED
from r1v_export.quantization.recipe import load, resolve
from r1v_export.targets.hf_unified.target import HfUnifiedTarget
from r1v_export.targets.hf_unified.write.formats import quant_config
from r1v_export.targets.readers import REFUSALS, VLLM

READER = json.loads((Path(__file__).parent / "readers/vllm-0.32.0.json").read_text())
UNIFIED = ("fp8-tensor", "fp8-rowwise", "int4-awq", "int4-gptq", "int4-rtn", "mixed")


def refused(layout: str) -> set[str]:
    return {refusal.format for refusal in REFUSALS if (refusal.reader, refusal.layout) == (VLLM, layout)}


def test_the_data_are_of_the_version_that_the_table_names():
    assert READER["reader"] == VLLM


def test_vllm_has_the_architecture_of_every_checkpoint_that_is_written():
    written = {readable_config(preset.config())["architectures"][0] for preset in PRESETS.values()}
    assert written <= set(READER["architectures"]) & ARCHITECTURES.keys()


def test_the_table_refuses_the_unified_algorithms_that_vllm_lacks():
    assert refused("hf-unified") == set(ALGORITHMS) - set(READER["modelopt"]["linear_algorithms"])
    assert READER["modelopt"]["by_name"] == MIXED


@pytest.mark.parametrize("recipe", UNIFIED)
def test_a_quantized_vision_tower_is_declared_by_name(recipe: str):
    spec = Checkpoint.open().spec
    schemes = resolve(load(recipe), spec)
    config = quant_config(spec, schemes, None)["quantization"]
    unless_by_name = tuple(READER["modelopt"]["unquantized_unless_by_name"])
    if any(linear.startswith(unless_by_name) for linear in schemes):
        assert config["quant_algo"] == READER["modelopt"]["by_name"]
        assert any(name.startswith(unless_by_name) for name in config["quantized_layers"])


@pytest.mark.parametrize("recipe", UNIFIED)
def test_a_build_warns_of_exactly_what_vllm_does_not_read(recipe: str):
    spec = Checkpoint.open().spec
    warnings = HfUnifiedTarget().warnings(spec, resolve(load(recipe), spec))
    int4 = recipe.startswith("int4") or recipe == "mixed"
    assert len(warnings) == int4
    assert all("vLLM 0.32.0 does not read W4A16_AWQ" in warning for warning in warnings)
