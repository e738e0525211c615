"""The target: what it refuses beforehand, and what it rounds."""

from __future__ import annotations

import json

import pytest
import torch

from r1v_export.config import BuildConfig, ParityConfig
from r1v_export.errors import CapabilityError
from r1v_export.model_spec import RopeScaling
from r1v_export.reference.language import rotary_tables
from r1v_export.targets.registry import get_target
from r1v_export.targets.tensorrt_llm.checkpoint.mapping import Mapping
from r1v_export.targets.tensorrt_llm.checkpoint.writer import write_checkpoint
from r1v_export.targets.tensorrt_llm.runtime.engine import load_language_model
from tests.tiny_models import checkpoint_of, random_model, tiny_spec

TARGET = ("tensorrt-llm",)


@pytest.mark.parametrize(
    ("precision", "stored", "compute"),
    [
        ("fp32", "bfloat16", "float32"),
        ("fp16", "bfloat16", "float16"),
        ("int4", "bfloat16", "bfloat16"),
        ("fp8", "float16", "float16"),
        ("int8", "float32", "float16"),
    ],
)
def test_around_quantized_linears_the_checkpoint_keeps_its_own_16_bits(synth_checkpoint, precision, stored, compute):
    spec = synth_checkpoint.spec.model_copy(update={"dtype": stored})

    numerics = get_target("tensorrt-llm").numerics(BuildConfig(precision=precision, targets=TARGET), spec)

    assert (numerics.compute, numerics.rounds_inputs) == (compute, False)


def test_a_bfloat16_build_says_beforehand_that_it_cannot_be_checked():
    with pytest.raises(CapabilityError, match="--no-parity"):
        get_target("tensorrt-llm").check(BuildConfig(precision="bf16", targets=TARGET))

    unchecked = BuildConfig(precision="bf16", targets=TARGET, parity=ParityConfig(enabled=False))
    get_target("tensorrt-llm").check(unchecked)


@pytest.mark.parametrize(
    ("scaling", "written"),
    [
        (RopeScaling(type="dynamic", factor=2), None),
        (RopeScaling(type="linear", factor=2), {"type": "linear", "factor": 2.0}),
    ],
    ids=["dynamic", "linear"],
)
def test_the_checkpoint_holds_the_rope_scaling_and_its_reader_computes_it(tmp_path, scaling, written):
    language = tiny_spec().language.model_copy(update={"rope_scaling": scaling})
    spec = tiny_spec().model_copy(update={"language": language})
    model = random_model(spec)
    write_checkpoint(checkpoint_of(model), None, tmp_path, torch.float32, parallel=Mapping(2))

    assert json.loads((tmp_path / "config.json").read_text())["rotary_scaling"] == written
    read = load_language_model(tmp_path, spec)
    expected, found = (rotary_tables(each.language_model.spec, 64) for each in (model, read))
    assert torch.equal(expected.cos, found.cos)


def test_yarn_is_refused_before_anything_is_computed():
    scaling = RopeScaling(type="yarn", factor=4, original_max_position_embeddings=64)
    language = tiny_spec().language.model_copy(update={"rope_scaling": scaling})
    spec = tiny_spec().model_copy(update={"language": language})
    with pytest.raises(CapabilityError, match="yarn"):
        get_target("tensorrt-llm").check_model(BuildConfig(targets=TARGET), spec, {})


@pytest.mark.parametrize(
    ("spec", "missing"), [(None, "onnxruntime is not installed: it runs the vision graph"), (object(), None)]
)
def test_the_vision_graph_needs_onnxruntime(monkeypatch, spec, missing):
    monkeypatch.setattr("r1v_export.targets.tensorrt_llm.target.find_spec", lambda _: spec)
    assert get_target("tensorrt-llm").missing("cpu") == missing
