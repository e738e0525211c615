"""NVIDIA's unified layout (`quant_method: modelopt`): `hf_quant_config.json` next to the weights, or its mirror in
config.json. One table of its algorithms, for reading and for writing.

    FP8                         one scale for the weight, one for its input
    FP8_PER_CHANNEL_PER_TOKEN   one scale per output feature; inputs are scaled per token at run time
    W4A16_AWQ                   int4 in groups, two output features to a byte, the even one in the low half
    W4A8_AWQ                    as above, and FP8 inputs; `weight_scale_2` scales qweight * weight_scale to FP8's range
    MIXED_PRECISION             one of these for each linear, by name
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from r1v_export.checkpoint.config_section import Section
from r1v_export.checkpoint.quantized.int4_packing import unpack
from r1v_export.checkpoint.quantized.layout import (
    FLOATS,
    Decoded,
    Inputs,
    LinearLayout,
    QWeightType,
    StoredLinear,
    TensorRule,
)

QUANT_CONFIG = "hf_quant_config.json"
LAYER_CONFIG = "quant_cfg.json"
"""Its layers once more, for TensorRT-LLM."""
METHOD = "modelopt"

Algorithm = Literal["FP8", "FP8_PER_CHANNEL_PER_TOKEN", "W4A16_AWQ", "W4A8_AWQ"]
MIXED = "MIXED_PRECISION"

WEIGHT, SCALE, SCALE_2 = "weight", "weight_scale", "weight_scale_2"
INPUT_SCALE, PRE_QUANT_SCALE = "input_scale", "pre_quant_scale"
K_SCALE, V_SCALE = "self_attn.k_proj.k_scale", "self_attn.v_proj.v_scale"
"""Of a decoder layer's FP8 cache: float32 scalars."""

_SCALAR = TensorRule((), (torch.float32,))
_FP8 = TensorRule(("O", "I"), (torch.float8_e4m3fn,))
_INT4 = {
    WEIGHT: TensorRule(("O/2", "I"), (torch.uint8,)),
    SCALE: TensorRule(("O", "G"), FLOATS),
    PRE_QUANT_SCALE: TensorRule(("I",), FLOATS, optional=True),
}


@dataclass(frozen=True)
class AlgorithmLayout:
    """What one algorithm stores of a linear."""

    qweight_type: QWeightType
    per_tensor: bool
    grouped: bool
    inputs: Inputs | None
    tensors: Mapping[str, TensorRule]
    decode: Callable[[Mapping[str, Tensor]], Decoded]


def _decode_fp8(tensors: Mapping[str, Tensor]) -> Decoded:
    return Decoded(tensors[WEIGHT], tensors[SCALE].float(), input_scale=tensors.get(INPUT_SCALE))


def _decode_int4(tensors: Mapping[str, Tensor]) -> Decoded:
    pre_quant_scale = tensors.get(PRE_QUANT_SCALE)
    return Decoded(
        qweight=(unpack(tensors[WEIGHT], 0, (0, 1)) ^ 8) - 8,
        scale=tensors[SCALE].float(),
        input_scale=tensors.get(INPUT_SCALE),
        pre_quant_scale=None
        if pre_quant_scale is None or bool((pre_quant_scale == 1).all())
        else pre_quant_scale.float(),
    )


ALGORITHMS: dict[Algorithm, AlgorithmLayout] = {
    "FP8": AlgorithmLayout(
        "fp8", True, False, "fp8 static", {WEIGHT: _FP8, SCALE: _SCALAR, INPUT_SCALE: _SCALAR}, _decode_fp8
    ),
    "FP8_PER_CHANNEL_PER_TOKEN": AlgorithmLayout(
        "fp8", False, False, "fp8 dynamic", {WEIGHT: _FP8, SCALE: TensorRule(("O",), (torch.float32,))}, _decode_fp8
    ),
    "W4A16_AWQ": AlgorithmLayout("int4", False, True, None, _INT4, _decode_int4),
    "W4A8_AWQ": AlgorithmLayout(
        "int4", False, True, "fp8 static", {**_INT4, SCALE_2: _SCALAR, INPUT_SCALE: _SCALAR}, _decode_int4
    ),
}


@dataclass(frozen=True)
class Unified:
    """`quant_method: modelopt`: one algorithm for all quantized linears, or one for each by name."""

    config: Section
    cache_scales: tuple[tuple[str, str], ...]
    warnings: tuple[str, ...] = ()
    method = METHOD
    marker = SCALE

    @classmethod
    def read(cls, config: Section) -> Unified:
        """Read the settings of a unified checkpoint.

        Args:
            config: `quantization` of hf_quant_config.json, or `quantization_config` of config.json.

        Raises:
            CheckpointError: an algorithm that is not in the table.
        """
        algorithm = config.choice("quant_algo", *ALGORITHMS, MIXED)
        if algorithm == MIXED and not isinstance(config.get("quantized_layers"), dict):
            raise config.wrong("quantized_layers", "an object with an algorithm for each linear", None)
        if config.has("kv_cache_quant_algo"):
            config.choice("kv_cache_quant_algo", "FP8")
        kv_cache = config.has("kv_cache_quant_algo") or config.has("kv_cache_scheme")
        return cls(config, ((K_SCALE, V_SCALE),) if kv_cache else ())

    def layout(self, linear: str, in_features: int) -> LinearLayout:
        section, algorithm = self._entry(linear)
        known = ALGORITHMS[algorithm]
        group_size = _group_size(section) if known.grouped else None
        name = algorithm if group_size is None else f"{algorithm} in groups of {group_size}"
        inputs, per_tensor = known.inputs, known.per_tensor
        return LinearLayout(name, known.qweight_type, per_tensor, group_size, inputs, known.tensors, known.decode)

    def settle(self, linears: Mapping[str, StoredLinear]) -> Unified:
        return self

    def _entry(self, linear: str) -> tuple[Section, Algorithm]:
        section = self.config
        if section.get("quant_algo") == MIXED:
            layers: dict[str, Any] = section.get("quantized_layers")
            if not isinstance(layers.get(linear), dict):
                raise section.wrong("quantized_layers", f"an entry for {linear}, which has scales", layers.get(linear))
            section = Section(layers[linear], f"{section.path}: quantized_layers: {linear}")
        algorithm = section.choice("quant_algo", *ALGORITHMS)
        return section, next(known for known in ALGORITHMS if known == algorithm)


def _group_size(section: Section) -> int:
    """Of the algorithm's own settings, or of the only group in the form that config.json has."""
    groups = section.section("config_groups")
    if section.has("group_size") or groups is None or len(groups.values) != 1:
        return section.size("group_size")
    (name,) = groups.values
    weights = (groups.section(name) or groups).section("weights")
    return (weights or section).size("group_size")
