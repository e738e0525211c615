"""Which of the unified layout's algorithms holds each linear, and the configuration that says so.

The layout itself is the table of `checkpoint.quantized.unified`, which reading shares.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from r1v_export.checkpoint.quantized.unified import ALGORITHMS, METHOD, MIXED, Algorithm
from r1v_export.errors import UsageError
from r1v_export.model_spec import ModelSpec
from r1v_export.quantization.groups import LM_HEAD_LINEAR, PATCH_EMBEDDING, linear_shapes
from r1v_export.quantization.kv_scales import CacheType
from r1v_export.quantization.recipe import Scheme
from r1v_export.targets.hub_folder import stored_linears
from r1v_export.targets.input_order import refuse_input_order
from r1v_export.targets.other_quantization import other_quantization
from r1v_export.version import VERSION

LAYOUT_VERSION = "0.47.0"
"""Of nvidia-modelopt, whose layout this is. Loaders know a unified checkpoint by the producer's name `modelopt`."""

VISION = "vision_model."
TOWERS = {
    "internvl_chat": {VISION: "vision_model*", "mlp1.": "mlp1*"},
    "internvl": {VISION: "model.vision_tower*", "mlp1.": "model.multi_modal_projector*"},
}
"""Checkpoint layout -> prefix of canonical names -> the wildcard for a tower of which nothing is quantized."""


CACHES: dict[CacheType, str] = {"fp8": "FP8"}
"""A recipe's cache type -> the layout's."""


def algorithm_of(linear: str, scheme: Scheme) -> Algorithm:
    """The algorithm that holds such a linear without loss.

    Raises:
        UsageError: none does.
    """
    weights, inputs = scheme.weights, scheme.inputs
    refuse_input_order("The unified layout", linear, scheme)
    wanted = (weights.type, weights.granularity == "tensor", inputs and f"{inputs.type} {inputs.mode}")
    for name, layout in ALGORITHMS.items():
        if (layout.qweight_type, layout.per_tensor, layout.inputs) == wanted:
            return name
    found = f"{weights.type} weights per {weights.granularity}"
    found += f", {inputs.type} inputs, {inputs.mode}" if inputs else ""
    rows = (weights.type, weights.granularity) == ("fp8", "channel")
    recipes = "--recipe fp8-tensor, or fp8-rowwise" if rows else "another recipe, such as int4-awq or fp8-tensor"
    raise UsageError(
        "The unified layout does not hold this quantization.",
        where=linear,
        expected="fp8 per tensor with static inputs, fp8 per channel with dynamic inputs, or int4 in groups",
        found=found,
        fix=other_quantization(scheme, recipes),
    )


def algorithms(spec: ModelSpec, schemes: Mapping[str, Scheme]) -> dict[str, Algorithm]:
    """The algorithm of every quantized linear.

    Raises:
        UsageError: the layout does not hold one of them.
    """
    if LM_HEAD_LINEAR in schemes and spec.language.tie_word_embeddings:
        raise UsageError(
            "A language-model head that is the token embedding cannot be quantized in a checkpoint.",
            where=LM_HEAD_LINEAR,
            fix="a recipe without a rule for it",
        )
    return {linear: algorithm_of(linear, scheme) for linear, scheme in schemes.items()}


def cache_algorithm(kind: CacheType | None) -> str | None:
    """How the layout stores such a key-value cache; None in 16 bits.

    Raises:
        UsageError: it does not.
    """
    if kind is None or kind in CACHES:
        return CACHES[kind] if kind else None
    raise UsageError(
        f"The unified layout has no {kind.upper()} key-value cache.",
        where="kv_cache",
        expected=f"{' or '.join(CACHES)}, or null",
        found=kind,
        fix="a recipe with another kv_cache; the target tensorrt-llm takes this one",
    )


def quant_config(spec: ModelSpec, schemes: Mapping[str, Scheme], kv_cache: CacheType | None) -> dict[str, Any]:
    """The content of hf_quant_config.json.

    Raises:
        UsageError: the layout does not hold one of the linears, or such a cache.
    """
    layers: dict[str, dict[str, Any]] = {}
    for linear, algorithm in algorithms(spec, schemes).items():
        entry = _entry(algorithm, schemes[linear].weights.group_size)
        layers |= dict.fromkeys(stored_linears(linear, spec), entry)
    kinds = {json.dumps(entry, sort_keys=True) for entry in layers.values()}
    # With one algorithm for all, vLLM takes every linear of a vision tower for unquantized.
    by_name = len(kinds) > 1 or any(linear.startswith(VISION) for linear in schemes)
    quantization: dict[str, Any] = {"quant_algo": MIXED} if by_name else dict(next(iter(layers.values())))
    quantization["kv_cache_quant_algo"] = cache_algorithm(kv_cache)
    quantization["exclude_modules"] = excluded(spec, schemes)
    if by_name:
        quantization["quantized_layers"] = layers
    return {
        "producer": {"name": METHOD, "version": LAYOUT_VERSION},
        "written_by": {"name": "r1v-export", "version": VERSION},
        "quantization": quantization,
    }


def layer_config(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """The content of quant_cfg.json, where earlier revisions of TensorRT-LLM's PyTorch backend (about 1.1) look for the
    layers of a mixed model and end if there is no such file; None for a model of one algorithm. Later ones and vLLM
    read hf_quant_config.json.
    """
    quantization = config["quantization"]
    if quantization["quant_algo"] != MIXED:
        return None
    return {name: quantization[name] for name in ("quant_algo", "kv_cache_quant_algo", "quantized_layers")}


def _entry(algorithm: Algorithm, group_size: int | None) -> dict[str, Any]:
    entry: dict[str, Any] = {"quant_algo": algorithm}
    if group_size is not None:
        entry |= {"group_size": group_size, "has_zero_point": False, "pre_quant_scale": True}
    return entry


def excluded(spec: ModelSpec, schemes: Mapping[str, Scheme]) -> list[str]:
    """Patterns for the modules that are not quantized, sorted; a tower without any quantized linear is one pattern."""
    patterns = set()
    towers = TOWERS[spec.layout]
    for linear in (PATCH_EMBEDDING, *linear_shapes(spec)):
        prefix = next((prefix for prefix in towers if linear.startswith(prefix)), None)
        if linear in schemes:
            continue
        if prefix is not None and not any(other.startswith(prefix) for other in schemes):
            patterns.add(towers[prefix])
        else:
            patterns.update(stored_linears(linear, spec))
        if linear == LM_HEAD_LINEAR:
            patterns.add("lm_head")  # its name for runtimes that load the language model by itself
    return sorted(patterns)


def mirrored(config: Mapping[str, Any]) -> dict[str, Any]:
    """`quantization_config` of config.json: hf_quant_config.json in the form that vLLM and transformers look for."""
    quantization = config["quantization"]
    layers: dict[str, dict[str, Any]] = quantization.get("quantized_layers", {})
    groups: dict[str, tuple[dict[str, Any], list[str]]] = {}
    for name, entry in layers.items():
        groups.setdefault(json.dumps(entry, sort_keys=True), (entry, []))[1].append(name)
    found = list(groups.values()) or [(quantization, ["Linear"])]
    content = {
        "config_groups": {
            f"group_{number}": {**_group(entry), "targets": sorted(targets)}
            for number, (entry, targets) in enumerate(found)
        },
        "ignore": quantization["exclude_modules"],
        "quant_algo": quantization["quant_algo"],
        "producer": config["producer"],
        "quant_method": METHOD,
    }
    if layers:
        content["quantized_layers"] = layers
    if quantization["kv_cache_quant_algo"]:
        content["kv_cache_scheme"] = {"dynamic": False, "num_bits": 8, "type": "float"}
    return content


def _group(entry: Mapping[str, Any]) -> dict[str, Any]:
    layout = ALGORITHMS[entry["quant_algo"]]
    weights: dict[str, Any] = {"dynamic": False, "num_bits": 8, "type": "float"}
    if layout.grouped:
        weights = {"dynamic": False, "num_bits": 4, "type": "int", "group_size": entry["group_size"]}
    elif not layout.per_tensor:
        weights["strategy"] = "channel"
    if layout.inputs is None:
        return {"weights": weights}
    inputs = {"dynamic": layout.inputs == "fp8 dynamic", "num_bits": 8, "type": "float"}
    return {"input_activations": inputs, "weights": weights}
