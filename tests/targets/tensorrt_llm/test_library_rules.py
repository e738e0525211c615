"""What TensorRT-LLM's own sources take, as data, against every checkpoint that is written for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.model_spec import LanguageSpec
from r1v_export.quantization.recipe import load, resolve
from r1v_export.targets.hf_unified.write.formats import layer_config, quant_config
from r1v_export.targets.tensorrt_llm.checkpoint.mapping import KERNEL_COLUMNS, Mapping
from r1v_export.targets.tensorrt_llm.checkpoint.writer import write_checkpoint
from tests.targets.tensorrt_llm.cases import SCHEMES, make_artifact, recipe

LIBRARY: dict[str, Any] = json.loads((Path(__file__).parents[1] / "readers/tensorrt-llm-1.2.json").read_text())
MIXED = recipe(f"language_model.*.self_attn.*: {SCHEMES['int4']}", f"language_model.*.mlp.down_proj: {SCHEMES['fp8']}")
"""The same in every layer, as stages of a pipeline must be."""
CASES = ("bf16", *SCHEMES, "fp8-kv", "int8-kv", "mixed")
UNIFIED = ("fp8-tensor", "fp8-rowwise", "int4-awq", "int4-gptq", "int4-rtn", "mixed", "w4a8")


@pytest.fixture(params=CASES)
def case(request) -> str:
    return request.param


@pytest.fixture(params=[Mapping(1), Mapping(2), Mapping(2, 2)], ids=lambda parallel: f"tp{parallel.tp}pp{parallel.pp}")
def parallel(request) -> Mapping:
    return request.param


@pytest.fixture
def folder(wide, quantized, case, parallel, tmp_path) -> Path:
    artifact = make_artifact(wide, MIXED, tmp_path / "mixed") if case == "mixed" else None
    if case in (*SCHEMES, "fp8-kv", "int8-kv"):
        artifact = quantized(case)
    out = tmp_path / "checkpoint"
    out.mkdir()
    write_checkpoint(wide, artifact, out, torch.bfloat16, parallel=parallel)
    return out


def read(folder: Path, name: str) -> dict[str, Any]:
    return json.loads((folder / name).read_text())


def stored(folder: Path, rank: int) -> dict[str, tuple[list[int], str]]:
    """Tensor -> shape and type."""
    with safe_open(folder / f"rank{rank}.safetensors", "pt") as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
    return {name: (list(each.get_shape()), each.get_dtype()) for name, each in slices.items()}


def layer_of(tensor: str) -> str:
    """The layer's name that the library derives from a tensor's: up to the first part that names a linear."""
    for part in LIBRARY["layer_name_parts"]:
        if part in tensor:
            return tensor[: tensor.index(part) + len(part)]
    return tensor.rpartition(".")[0]


def sizes(spec: LanguageSpec) -> dict[str, int]:
    return {
        "hidden": spec.hidden_size,
        "intermediate": spec.intermediate_size,
        "attended": spec.num_heads * spec.head_dim,
        "qkv": (spec.num_heads + 2 * spec.num_kv_heads) * spec.head_dim,
    }


def required(spec: LanguageSpec, parallel: Mapping, rank: int, config: dict[str, Any], layers: dict[str, Any]) -> dict:
    """Each tensor that the library's model asks for, with shape and type as they lie in the file.

    Args:
        layers: quantization of each layer, where they differ.
    """
    stage, counts, tensors = rank // parallel.tp, sizes(spec), {}
    for layer in range(spec.num_layers // parallel.pp):
        prefix = f"transformer.layers.{layer}"
        for norm in ("input_layernorm", "post_layernorm"):
            tensors[f"{prefix}.{norm}.weight"] = ([spec.hidden_size], "BF16")
        for name, linear in LIBRARY["linears"].items():
            entry = layers.get(f"{prefix}.{name}", {}) if layers else config["quantization"]
            shares = {
                side: counts[linear[side]] // (parallel.tp if linear["cut"] == side else 1) for side in ("in", "out")
            }
            tensors |= parameters(f"{prefix}.{name}", entry, shares)
            if linear["bias"]:
                tensors[f"{prefix}.{name}.bias"] = ([shares["out"]], "BF16")
        if config["quantization"]["kv_cache_quant_algo"]:
            name, (_, dtype) = LIBRARY["cache_scale"]
            tensors[f"{prefix}.{name}"] = ([1], dtype)
    if stage == 0:
        tensors["transformer.vocab_embedding.weight"] = ([spec.vocab_size, spec.hidden_size], "BF16")
    if stage == parallel.pp - 1:
        tensors["transformer.ln_f.weight"] = ([spec.hidden_size], "BF16")
        tensors["lm_head.weight"] = ([-(-spec.vocab_size // parallel.tp), spec.hidden_size], "BF16")
    return tensors


def parameters(name: str, entry: dict[str, Any], shares: dict[str, int]) -> dict[str, tuple[list[int], str]]:
    rules = LIBRARY["parameters"][entry.get("quant_algo") or "none"]
    dimensions = {"1": 1, **shares, "out/2": shares["out"] // 2, "out/4": shares["out"] // 4}
    dimensions["in/group"] = shares["in"] // entry.get("group_size", 128)
    types = {"model": "BF16", "cast": "F32"}  # what it casts by itself may be anything: here float32
    return {
        f"{name}.{suffix}": ([dimensions[axis] for axis in axes], types.get(dtype, dtype))
        for suffix, (axes, dtype) in rules.items()
    }


def test_config_json_has_what_its_classes_take(folder):
    config, rules = read(folder, "config.json"), LIBRARY["config"]
    assert config["architecture"] in LIBRARY["architectures"]
    assert config["qwen_type"] in rules["qwen_type"]
    assert set(rules["required"]) <= config.keys()
    assert config.keys() <= {*rules["named"], *rules["read_by_name"], *rules["kept_unread"]}
    assert rules["defaults_that_are_wrong_for_qwen2"].keys() <= config.keys()


def test_quantization_has_keys_and_algorithms_that_it_knows(folder):
    quantization = read(folder, "config.json")["quantization"]
    assert quantization.keys() <= set(LIBRARY["quant_config"])
    assert quantization["quant_algo"] in (None, *LIBRARY["algorithms"])
    assert quantization["kv_cache_quant_algo"] in (None, *LIBRARY["kv_cache_algorithms"])


def test_each_gpu_has_exactly_the_tensors_that_its_model_asks_for(folder, wide, parallel):
    config = read(folder, "config.json")
    mixed = config["quantization"]["quant_algo"] == "MIXED_PRECISION"
    layers = read(folder, "quant_cfg.json")["quantized_layers"] if mixed else {}
    for rank in range(parallel.gpus):
        assert stored(folder, rank) == required(wide.spec.language, parallel, rank, config, layers)


@pytest.mark.parametrize("case", ["mixed"], indirect=True)
@pytest.mark.parametrize("parallel", [Mapping(1)], indirect=True)
def test_a_mixed_model_names_layers_as_the_library_derives_them_from_tensors(folder):
    document = read(folder, "quant_cfg.json")
    assert document.keys() <= {*LIBRARY["layer_quant_config"]}
    derived = {layer_of(tensor) for tensor in stored(folder, 0)}
    for name, entry in document["quantized_layers"].items():
        assert name in derived
        assert entry.keys() <= set(LIBRARY["quant_config"])
        assert entry["quant_algo"] in LIBRARY["algorithms"]


def test_features_that_the_library_would_pad_are_those_that_are_refused():
    assert LIBRARY["multiple_without_padding"] == KERNEL_COLUMNS


@pytest.mark.parametrize("name", UNIFIED)
def test_a_unified_checkpoint_has_what_its_modelopt_reader_reads(name):
    spec, chosen = Checkpoint.open().spec, load(name)
    config = quant_config(spec, resolve(chosen, spec), chosen.kv_cache)
    quantization, layers = config["quantization"], layer_config(config)
    assert quantization["quant_algo"] in LIBRARY["algorithms"]
    assert quantization["kv_cache_quant_algo"] in (None, *LIBRARY["kv_cache_algorithms"])
    assert (layers is not None) == (quantization["quant_algo"] == "MIXED_PRECISION")
    if layers is not None:
        rules = LIBRARY["modelopt"]
        assert set(rules["mixed_precision_keys_read_without_a_default"]) <= layers.keys()
        assert layers["kv_cache_quant_algo"] == quantization["kv_cache_quant_algo"]
        assert {entry["quant_algo"] for entry in layers["quantized_layers"].values()} <= set(LIBRARY["algorithms"])
