"""What other runtimes take, as data of a version, against what is written for them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.checkpoint.config import ARCHITECTURES
from r1v_export.checkpoint.hub_files import readable_config
from r1v_export.checkpoint.presets import PRESETS
from r1v_export.checkpoint.quantized.unified import ALGORITHMS, MIXED
from r1v_export.config import BuildConfig
from r1v_export.quantization.recipe import Recipe, load, parse, resolve
from r1v_export.targets.compressed_tensors.target import CompressedTensorsTarget
from r1v_export.targets.compressed_tensors.write.formats import cache_scheme, formats, quantization_config
from r1v_export.targets.hf_unified.target import HfUnifiedTarget
from r1v_export.targets.hf_unified.write.formats import algorithms, quant_config
from r1v_export.targets.readers import NATIVE_TOWER, REFUSALS, UNEQUAL, VLLM
from tests.documents import PROJECT
from tests.targets.vllm import COMPRESSED, READER, fits, kind, modules, schemes_for

_INT4 = load("int4-gptq").to_yaml()
COMPRESSED_RECIPES: dict[str, Recipe] = {
    **{name: load(name) for name in ("fp8", "fp8-tensor", "fp8-rowwise", "fp8-kv", "int8-smoothquant", "mixed")},
    **{name: load(name) for name in ("int4-gptq", "int4-awq", "int4-rtn")},
    "int4 in groups of 32": parse(_INT4.replace("group_size: 128", "group_size: 32")),
    "int4 in groups of 64": parse(_INT4.replace("group_size: 128", "group_size: 64")),
    "uint4": parse(_INT4.replace("type: int4", "type: uint4")),
    "int8 with dynamic inputs": parse(load("int8-smoothquant").to_yaml().replace("mode: static", "mode: dynamic")),
}
UNIFIED = ("fp8-tensor", "fp8-rowwise", "int4-awq", "int4-gptq", "int4-rtn", "mixed")
MEASURED: list[dict[str, Any]] = json.loads(
    sorted((PROJECT / "benchmarks/results").glob("*-vllm-oracle.json"))[-1].read_text()
)["matrix"]


def refused(layout: str) -> set[str]:
    return {refusal.format for refusal in REFUSALS if (refusal.reader, refusal.layout) == (VLLM, layout)}


def test_the_data_are_of_the_version_that_the_table_names():
    assert READER["reader"] == VLLM


def test_vllm_has_the_architecture_of_every_checkpoint_that_is_written():
    written = {readable_config(preset.config())["architectures"][0] for preset in PRESETS.values()}
    assert written <= set(READER["architectures"]) & ARCHITECTURES.keys()


def test_the_table_refuses_the_unified_algorithms_that_vllm_lacks():
    assert refused("hf-unified") - {UNEQUAL, NATIVE_TOWER} == set(ALGORITHMS) - set(
        READER["modelopt"]["linear_algorithms"]
    )
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
    warnings = HfUnifiedTarget().warnings(BuildConfig(), spec, resolve(load(recipe), spec))
    int4 = recipe.startswith("int4") or recipe == "mixed"
    assert len(warnings) == int4
    assert all("vLLM 0.32.0 does not read W4A16_AWQ" in warning for warning in warnings)


@pytest.mark.parametrize("recipe", COMPRESSED_RECIPES.values(), ids=COMPRESSED_RECIPES)
def test_vllm_has_one_class_for_every_group_of_a_compressed_tensors_checkpoint(recipe: Recipe):
    spec = Checkpoint.open().spec
    config = quantization_config(spec, resolve(recipe, spec), recipe.kv_cache)
    found = {name: schemes_for(group) for name, group in config["config_groups"].items()}
    assert all(len(classes) == 1 for classes in found.values()), found


@pytest.mark.parametrize("order", ["none", "static", "group"])
def test_groups_in_activation_order_are_what_vllm_refuses_and_a_build_warns_of(order: str):
    spec = Checkpoint.open().spec
    schemes = resolve(parse(_INT4.replace("act_order: static", f"act_order: {order}")), spec)
    group = quantization_config(spec, schemes, None)["config_groups"]["group_0"]
    assert bool(schemes_for(group)) == (order != "group")
    warnings = CompressedTensorsTarget().warnings(BuildConfig(), spec, schemes)
    assert [warning.partition(":")[0] for warning in warnings] == [f"{VLLM} does not read actorder"] * (
        order == "group"
    )


def test_vllm_takes_the_cache_scheme_that_is_written():
    scheme = cache_scheme("fp8")
    assert scheme is not None
    assert fits(scheme, COMPRESSED["kv_cache_scheme"])


@pytest.mark.parametrize("recipe", ["fp8-tensor", "mixed", "int4-gptq"])
@pytest.mark.parametrize("layout", ["compressed-tensors", "hf-unified"])
def test_names_are_those_of_vllms_modules_and_fused_ones_are_whole(recipe: str, layout: str):
    spec = Checkpoint.open().spec
    schemes = resolve(load(recipe), spec)
    if layout == "compressed-tensors":
        config = quantization_config(spec, schemes, None)
        quantized = [name for group in config["config_groups"].values() for name in group["targets"]]
        ignored = config["ignore"]
    else:
        config = quant_config(spec, schemes, None)["quantization"]
        quantized = list(config.get("quantized_layers", schemes))
        ignored = [name for name in config["exclude_modules"] if not name.endswith("*")]
    not_linears = {"lm_head", "vision_model.embeddings.patch_embedding"}
    for names in (quantized, set(ignored) - not_linears):
        for module, shards in modules(names).items():
            assert kind(module) in READER["linears"]
            fused = READER["fused"].get(module.rpartition(".")[2])
            assert fused is None or shards == set(fused)


@pytest.mark.parametrize("target", [HfUnifiedTarget(), CompressedTensorsTarget()], ids=lambda target: target.name)
def test_a_build_warns_of_fused_linears_that_are_not_quantized_alike(target: HfUnifiedTarget | CompressedTensorsTarget):
    spec = Checkpoint.open().spec
    schemes = resolve(load("fp8-tensor"), spec)
    assert target.warnings(BuildConfig(), spec, schemes) == ()
    del schemes["language_model.model.layers.2.self_attn.k_proj"]
    (warning,) = target.warnings(BuildConfig(), spec, schemes)
    assert warning == f"{VLLM} does not read {UNEQUAL}: it computes each of the two sets as one linear. " + (
        "Give each set one scheme."
    )


@pytest.mark.parametrize("target", [HfUnifiedTarget(), CompressedTensorsTarget()], ids=lambda target: target.name)
@pytest.mark.parametrize("modules", ["vision_model.*", "mlp1.*", "language_model.*"])
def test_a_build_warns_of_a_quantized_tower_in_the_native_layout(
    target: HfUnifiedTarget | CompressedTensorsTarget, modules: str
):
    spec = Checkpoint.open().spec
    recipe = load("fp8-tensor")
    rules = (recipe.rules[0].model_copy(update={"modules": (modules,)}),)
    schemes = resolve(recipe.model_copy(update={"rules": rules}), spec)
    assert target.warnings(BuildConfig(), spec, schemes) == ()
    warnings = target.warnings(BuildConfig(), spec.model_copy(update={"layout": "internvl"}), schemes)
    assert [NATIVE_TOWER in warning for warning in warnings] == [True] * (modules != "language_model.*")


def test_the_results_are_of_the_version_that_the_table_names():
    assert {f"{row['reader']} {row['version']}" for row in MEASURED} == {VLLM}


def test_the_table_refuses_exactly_what_vllm_did_not_load():
    """What fails in one set of vLLM's kernels only, and computes in another, is no limit of the format."""
    computed = {(row["target"], row["artifact"]) for row in MEASURED if row["computes"]}
    for row in MEASURED:
        if not row["formats"]:  # no target wrote it
            continue
        if refused(row["target"]) & set(row["formats"]):
            assert not row["loads"], row
        else:
            assert (row["target"], row["artifact"]) in computed, row


def test_vllm_gives_the_answers_of_this_packages_own_reader():
    """Linears that were taken for unquantized would give other answers."""
    for row in MEASURED:
        if row["computes"]:
            assert row["equal"] >= 0.95 * row["of"], row
            assert row["prompt_ids_equal"] == row["of"], row


def test_every_format_that_is_written_was_given_to_vllm():
    given = {(row["target"], name) for row in MEASURED for name in row["formats"]}
    spec = Checkpoint.open().spec
    written = {
        ("hf-unified", name) for recipe in UNIFIED for name in algorithms(spec, resolve(load(recipe), spec)).values()
    }
    written |= {
        ("compressed-tensors", name)
        for recipe in COMPRESSED_RECIPES.values()
        for name in formats(spec, resolve(recipe, spec)).values()
    }
    assert written <= given
