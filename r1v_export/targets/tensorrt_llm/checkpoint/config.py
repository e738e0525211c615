"""`config.json` of a checkpoint, and `quant_cfg.json` where linears are quantized in different ways."""

from __future__ import annotations

from collections import abc
from typing import Any

import torch

from r1v_export.errors import CapabilityError
from r1v_export.model_spec import LanguageSpec
from r1v_export.quantization.kv_scales import CacheType
from r1v_export.targets.tensorrt_llm.checkpoint.formats import MIXED, PRE_QUANT_SCALES, Algorithm, QuantFormat
from r1v_export.targets.tensorrt_llm.checkpoint.mapping import Mapping
from r1v_export.targets.tensorrt_llm.checkpoint.pack import KernelLayout
from r1v_export.version import VERSION

CONFIG, QUANTIZED_LAYERS = "config.json", "quant_cfg.json"
ARCHITECTURE = "Qwen2ForCausalLM"
HEAD = "lm_head"

KV_CACHE: dict[CacheType, str] = {"fp8": "FP8", "int8": "INT8"}
"""A recipe's cache type -> TensorRT-LLM's."""

QuantFormats = abc.Mapping[tuple[int, str], QuantFormat | None]


def checkpoint_config(
    spec: LanguageSpec,
    quant_formats: QuantFormats,
    parallel: Mapping,
    dtype: torch.dtype,
    kv_cache: CacheType | None,
    layout: KernelLayout = 80,
) -> dict[str, Any]:
    """What TensorRT-LLM must know of the model. `rotary_base` and `qwen_type` are always there: the first has a default
    of 10000 that would silently be taken, and without the second the model is a Qwen of the first generation."""
    return {
        "producer": {"name": "r1v-export", "version": VERSION, "kernel_layout": layout},
        "architecture": ARCHITECTURE,
        "dtype": str(dtype).removeprefix("torch."),
        "logits_dtype": "float32",
        "vocab_size": spec.vocab_size,
        "max_position_embeddings": spec.max_position_embeddings,
        "hidden_size": spec.hidden_size,
        "intermediate_size": spec.intermediate_size,
        "num_hidden_layers": spec.num_layers,
        "num_attention_heads": spec.num_heads,
        "num_key_value_heads": spec.num_kv_heads,
        "head_size": spec.head_dim,
        "hidden_act": "silu",
        "norm_epsilon": spec.rms_norm_eps,
        "position_embedding_type": "rope_gpt_neox",
        "rotary_base": spec.rope_theta,
        "rotary_scaling": rotary_scaling(spec),
        "rotary_embedding_dim": spec.head_dim,
        "qwen_type": "qwen2",
        "qk_layernorm": False,
        "attn_bias": True,
        "mlp_bias": False,
        "use_logn_attn": False,
        "use_parallel_embedding": False,
        "embedding_sharding_dim": 0,
        "share_embedding_table": False,
        "tie_word_embeddings": False,
        "disable_weight_only_quant_plugin": False,
        "seq_length": min(8192, spec.max_position_embeddings),
        "num_labels": 1,
        "moe": {"num_experts": 0, "top_k": 0, "normalization_mode": 0},
        "moe_intermediate_size": 0,
        "moe_shared_expert_intermediate_size": 0,
        "mapping": {"world_size": parallel.gpus, "tp_size": parallel.tp, "pp_size": parallel.pp},
        "quantization": quantization(quant_formats, parallel.layers(0, spec.num_layers), kv_cache),
        "runtime_defaults": None,
    }


def rotary_scaling(spec: LanguageSpec) -> dict[str, Any] | None:
    """`rotary_scaling`. Dynamic scaling does nothing up to `max_position_embeddings`, where engines end.

    Raises:
        CapabilityError: YaRN, which TensorRT-LLM's attention of Qwen2 would ignore.
    """
    scaling = spec.rope_scaling
    if scaling is None or scaling.type == "dynamic":
        return None
    if scaling.type == "linear":
        return {"type": "linear", "factor": scaling.factor}
    raise CapabilityError(
        "A TensorRT-LLM checkpoint of a Qwen2 model cannot hold this rope scaling.",
        where="llm_config.rope_scaling",
        expected="none, linear or dynamic",
        found=scaling.type,
        fix="build for onnxruntime, tensorrt or hf-unified",
    )


def quantization(quant_formats: QuantFormats, layers: range, kv_cache: CacheType | None) -> dict[str, Any]:
    """The quantization of the whole model.

    Args:
        layers: of the first pipeline stage; the others are like it.
    """
    algorithm = overall(quant_formats)
    cache = KV_CACHE[kv_cache] if kv_cache else None
    if algorithm is None:
        return {"quant_algo": None, "kv_cache_quant_algo": cache}
    if algorithm == MIXED:
        return {"quant_algo": MIXED, "kv_cache_quant_algo": cache}
    quant_format = next(quant_format for quant_format in quant_formats.values() if quant_format is not None)
    plain = [
        _name(layer, module) for (layer, module), other in quant_formats.items() if other is None and layer in layers
    ]
    return {**_entry(quant_format), "kv_cache_quant_algo": cache, "exclude_modules": [HEAD, *plain]}


def layer_config(quant_formats: QuantFormats, layers: range, kv_cache: CacheType | None) -> dict[str, Any] | None:
    """`quant_cfg.json`: the quantization linear by linear, where it differs; None where one algorithm is enough."""
    if overall(quant_formats) != MIXED:
        return None
    quantized = {
        _name(layer, module): _entry(quant_format)
        for (layer, module), quant_format in quant_formats.items()
        if quant_format is not None and layer in layers
    }
    return {**quantization(quant_formats, layers, kv_cache), "quantized_layers": quantized}


def overall(quant_formats: QuantFormats) -> Algorithm | None:
    """The one algorithm (with one group size) that the quantized linears have, or that they are mixed."""
    found = {quant_format for quant_format in quant_formats.values() if quant_format is not None}
    if len(found) > 1:
        return MIXED
    return next((quant_format.algorithm for quant_format in found), None)


def _entry(quant_format: QuantFormat) -> dict[str, Any]:
    return {
        "quant_algo": quant_format.algorithm,
        "group_size": quant_format.group_size or 128,
        "smoothquant_val": 0.5,
        "clamp_val": None,
        "use_meta_recipe": False,
        "has_zero_point": quant_format.algorithm == "W4A16_GPTQ",
        "pre_quant_scale": quant_format.algorithm in PRE_QUANT_SCALES,
        "exclude_modules": [HEAD],
    }


def _name(layer: int, module: str) -> str:
    return f"transformer.layers.{layer}.{module}"
