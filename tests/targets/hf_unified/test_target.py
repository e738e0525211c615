"""The target hf-unified takes every recipe that its layout holds, and refuses others before any work."""

from __future__ import annotations

from dataclasses import replace

import pytest

from r1v_export.config import BuildConfig
from r1v_export.errors import UsageError
from r1v_export.quantization.recipe import load
from r1v_export.targets.hf_unified.target import HfUnifiedTarget
from r1v_export.targets.hf_unified.write.checkpoint import write_unified


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        ({"precision": "bf16"}, "a quantized one"),
        ({"precision": "int8"}, "does not hold this precision"),
        ({"precision": "fp8", "recipe": "fp8"}, "does not hold this quantization"),
        ({"precision": "int8", "recipe": "int8-smoothquant"}, "does not hold this quantization"),
    ],
)
def test_what_it_cannot_hold_is_refused_before_any_work(fields, what):
    with pytest.raises(UsageError, match=what):
        HfUnifiedTarget().check(BuildConfig(targets=("hf-unified",), **fields))


def test_an_int8_cache_is_refused_before_any_work(source, make, tmp_path):
    recipe = tmp_path / "kv.yaml"
    recipe.write_text(load("int4-rtn").to_yaml().replace("kv_cache: null", "kv_cache: int8"))
    with pytest.raises(UsageError, match=r"no INT8 key-value cache[\s\S]*fp8, or null[\s\S]*tensorrt-llm"):
        HfUnifiedTarget().check(BuildConfig(precision="int4", recipe=str(recipe), targets=("hf-unified",)))

    calibrated = make(source, "int4-rtn")
    changed = replace(calibrated.artifact, recipe=calibrated.artifact.recipe.model_copy(update={"kv_cache": "int8"}))
    with pytest.raises(UsageError, match="no INT8 key-value cache"):
        write_unified(calibrated.checkpoint, changed, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("recipe", ["fp8-tensor", "fp8-rowwise", "int4-awq", "int4-gptq", "int4-rtn", "w4a8", "mixed"])
def test_every_shipped_recipe_of_its_formats_is_taken(recipe):
    precision = "fp8" if recipe.startswith("fp8") else "int4"
    HfUnifiedTarget().check(BuildConfig(precision=precision, recipe=recipe, targets=("hf-unified",)))
