"""How compressed-tensors stores each linear, and the `quantization_config` that says so.

pack-quantized    int4 and uint4 in groups, eight input features to an int32, the first in the lowest bits; groups in
                  activation order (`actorder: group`) name the group of each input in weight_g_idx
float-quantized   FP8: weights per tensor or output feature, inputs static per tensor or dynamic per token
int-quantized     INT8: weights per output feature, inputs likewise
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal

from r1v_export.errors import UsageError
from r1v_export.model_spec import ModelSpec
from r1v_export.quantization.groups import LM_HEAD_LINEAR, linear_shapes
from r1v_export.quantization.kv_scales import CacheType
from r1v_export.quantization.recipe import Gptq, Scheme
from r1v_export.targets.hub_folder import stored_linears
from r1v_export.targets.other_quantization import other_quantization
from r1v_export.version import VERSION

METHOD = "compressed-tensors"
MIXED = "mixed-precision"

Format = Literal["pack-quantized", "float-quantized", "int-quantized"]

_FORMATS: dict[tuple[str, str | None], Format] = {
    ("int4", None): "pack-quantized",
    ("uint4", None): "pack-quantized",
    ("fp8", "fp8"): "float-quantized",
    ("int8", "int8"): "int-quantized",
}
"""(weight type, input type) -> the format that holds them without loss."""


def format_of(linear: str, scheme: Scheme) -> Format:
    """The format of a linear.

    Raises:
        UsageError: none holds it, or none that runtimes still read.
    """
    weights, inputs = scheme.weights, scheme.inputs
    if scheme.has_pre_quant_scale:
        raise UsageError(
            "compressed-tensors has no scale of a linear's inputs.",
            where=linear,
            expected="weights that compute with the inputs as they come",
            found="a pre_quant_scale of its own",
            fix="--target hf-unified",
        )
    found = _FORMATS.get((weights.type, inputs.type if inputs else None))
    if found is None:
        raise UsageError(
            "compressed-tensors does not hold this quantization.",
            where=linear,
            expected="fp8 weights and inputs, int8 weights and inputs, or int4 weights in groups with 16-bit inputs",
            found=f"{weights.type} weights with {f'{inputs.type} inputs' if inputs else '16-bit inputs'}",
            fix=other_quantization(scheme, "another recipe, such as fp8, int8-smoothquant or int4-gptq"),
        )
    return found


def formats(spec: ModelSpec, schemes: Mapping[str, Scheme]) -> dict[str, Format]:
    """The format of every quantized linear.

    Raises:
        UsageError: there is none for one of them.
    """
    if LM_HEAD_LINEAR in schemes and spec.language.tie_word_embeddings:
        raise UsageError(
            "A language-model head that is the token embedding cannot be quantized in a checkpoint.",
            where=LM_HEAD_LINEAR,
            fix="a recipe without a rule for it",
        )
    return {linear: format_of(linear, scheme) for linear, scheme in schemes.items()}


def cache_scheme(kind: CacheType | None) -> dict[str, Any] | None:
    """`kv_cache_scheme` for such a key-value cache; None in 16 bits.

    Raises:
        UsageError: runtimes read no such scheme.
    """
    if kind is None:
        return None
    if kind != "fp8":
        raise UsageError(
            f"Runtimes read no {kind.upper()} key-value cache from compressed-tensors.",
            where="kv_cache",
            expected="fp8, or null",
            found=kind,
            fix="a recipe with another kv_cache; the target tensorrt-llm takes this one",
        )
    return {"num_bits": 8, "type": "float", "strategy": "tensor", "dynamic": False, "symmetric": True}


def quantization_config(spec: ModelSpec, schemes: Mapping[str, Scheme], kv_cache: CacheType | None) -> dict[str, Any]:
    """`quantization_config` of config.json.

    Linears are named in full, in `targets` as in `ignore`: runtimes map such names to their own modules, also to those
    that they fuse, and need no knowledge of classes.

    Raises:
        UsageError: there is no format for a linear, or for such a cache.
    """
    groups: dict[str, tuple[dict[str, Any], list[str]]] = {}
    for linear, kind in formats(spec, schemes).items():
        group = _group(schemes[linear], kind)
        groups.setdefault(json.dumps(group), (group, []))[1].extend(stored_linears(linear, spec))
    kinds = {group["format"] for group, _ in groups.values()}
    return {
        "config_groups": {
            f"group_{number}": {**group, "targets": targets} for number, (group, targets) in enumerate(groups.values())
        },
        "format": kinds.pop() if len(kinds) == 1 else MIXED,
        "ignore": ignored(spec, schemes),
        "kv_cache_scheme": cache_scheme(kv_cache),
        "quant_method": METHOD,
        "quantization_status": "compressed",
        "written_by": {"name": "r1v-export", "version": VERSION},
    }


def ignored(spec: ModelSpec, schemes: Mapping[str, Scheme]) -> list[str]:
    """The linears that are not quantized, by their stored names."""
    names = [name for linear in linear_shapes(spec) if linear not in schemes for name in stored_linears(linear, spec)]
    return [*names, *(["lm_head"] if LM_HEAD_LINEAR not in schemes and "lm_head" not in names else [])]


def act_order(scheme: Scheme) -> Literal["group", "weight"] | None:
    """`actorder` of a scheme's weights, in the package's own words; None where columns were rounded as they come, and
    where an imported checkpoint's groups are neighboring inputs."""
    if scheme.has_input_order:
        return "group"
    return "weight" if isinstance(scheme.weights, Gptq) and scheme.weights.act_order == "static" else None


def _group(scheme: Scheme, kind: Format) -> dict[str, Any]:
    weights = scheme.weights
    described: dict[str, Any] = {
        "num_bits": 4 if kind == "pack-quantized" else 8,
        "type": "float" if kind == "float-quantized" else "int",
        "strategy": weights.granularity,
        "symmetric": weights.type != "uint4",
        "dynamic": False,
    }
    if weights.group_size is not None:
        described["group_size"] = weights.group_size
    if (order := act_order(scheme)) is not None:
        described["actorder"] = order
    inputs: dict[str, Any] | None = None
    if scheme.inputs is not None:
        static = scheme.inputs.mode == "static"
        inputs = {
            "num_bits": 8,
            "type": described["type"],
            "strategy": "tensor" if static else "token",
            "symmetric": True,
            "dynamic": not static,
        }
    return {"weights": described, "input_activations": inputs, "output_activations": None, "format": kind}
