"""How each linear of the language model is stored: TensorRT-LLM's quantization algorithms.

One table: the scheme of a recipe on the left, the algorithm on the right. What has no row is refused by name, before
any weight is read.

    weights                  inputs              algorithm
    16 bits                                      none
    fp8, one per tensor      fp8, static         FP8
    fp8, one per row         fp8, per token      FP8_PER_CHANNEL_PER_TOKEN      the whole model or nothing
    int8, one per row        int8, static        W8A8_SQ_PER_CHANNEL
    int4 in groups                               W4A16_AWQ
    int4 in groups of 128    fp8, static         W4A8_AWQ
    uint4 in groups                              W4A16_GPTQ                     has zero points
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from r1v_export.errors import UsageError
from r1v_export.model_spec import LanguageSpec
from r1v_export.quantization.groups import LM_HEAD_LINEAR
from r1v_export.quantization.recipe import Scheme
from r1v_export.targets.input_order import refuse_input_order
from r1v_export.targets.other_quantization import other_quantization

Algorithm = Literal[
    "FP8", "FP8_PER_CHANNEL_PER_TOKEN", "W8A8_SQ_PER_CHANNEL", "W4A16_AWQ", "W4A8_AWQ", "W4A16_GPTQ", "MIXED_PRECISION"
]

ROWWISE: Algorithm = "FP8_PER_CHANNEL_PER_TOKEN"
MIXED: Algorithm = "MIXED_PRECISION"

FOUR_BITS: tuple[Algorithm, ...] = ("W4A16_AWQ", "W4A8_AWQ", "W4A16_GPTQ")
PRE_QUANT_SCALES: tuple[Algorithm, ...] = ("W4A16_AWQ", "W4A8_AWQ", "W8A8_SQ_PER_CHANNEL")
"""Algorithms whose linears multiply their input by a scale per channel. Ours is folded into what makes the input, so
ones are stored: the loader looks the tensor up without asking."""

MODULES: dict[str, tuple[str, ...]] = {
    "attention.qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "attention.dense": ("self_attn.o_proj",),
    "mlp.fc": ("mlp.gate_proj",),
    "mlp.gate": ("mlp.up_proj",),
    "mlp.proj": ("mlp.down_proj",),
}
"""TensorRT-LLM's linears of a layer, and the checkpoint's that each is made of, joined along the rows. `fc` is the one
that goes through the activation."""

FUSED_MLP = ("mlp.fc", "mlp.gate")
"""Linears that the engine may run as one product."""

_SUPPORTED = (
    "fp8 tensor + fp8 static, fp8 channel + fp8 dynamic, int8 channel + int8 static, int4 group, "
    "int4 group 128 + fp8 static, uint4 group"
)


@dataclass(frozen=True)
class QuantFormat:
    """How one linear is stored."""

    algorithm: Algorithm
    group_size: int | None


def describe(quant_format: QuantFormat | None) -> str:
    """A format's name for people: "W4A16_AWQ in groups of 64"."""
    if quant_format is None:
        return "16 bits"
    groups = f" in groups of {quant_format.group_size}" if quant_format.group_size else ""
    return f"{quant_format.algorithm}{groups}"


def format_of(linear: str, scheme: Scheme | None) -> QuantFormat | None:
    """How TensorRT-LLM stores a linear of this scheme; None is 16 bits.

    Raises:
        UsageError: it has no such format.
    """
    if scheme is None:
        return None
    refuse_input_order("TensorRT-LLM", linear, scheme)
    weights, inputs = scheme.weights, scheme.inputs
    mode = (inputs.type, inputs.mode) if inputs else None
    algorithms: dict[tuple[str, str, tuple[str, str] | None], Algorithm] = {
        ("fp8", "tensor", ("fp8", "static")): "FP8",
        ("fp8", "channel", ("fp8", "dynamic")): ROWWISE,
        ("int8", "channel", ("int8", "static")): "W8A8_SQ_PER_CHANNEL",
        ("int4", "group", None): "W4A16_AWQ",
        ("int4", "group", ("fp8", "static")): "W4A8_AWQ",
        ("uint4", "group", None): "W4A16_GPTQ",
    }
    algorithm = algorithms.get((weights.type, weights.granularity, mode))
    if algorithm is None or (algorithm == "W4A8_AWQ" and weights.group_size != 128):
        raise _unsupported(linear, scheme)
    return QuantFormat(algorithm, weights.group_size)


def _unsupported(linear: str, scheme: Scheme) -> UsageError:
    weights, inputs = scheme.weights, scheme.inputs
    found = f"{weights.type} {weights.granularity}" + (f" {weights.group_size}" if weights.group_size else "")
    found += f" + {inputs.type} {inputs.mode}" if inputs else ""
    per_channel = (weights.type, weights.granularity) == ("fp8", "channel")
    recipes = "--recipe fp8-tensor (one scale per weight) or fp8-rowwise" if per_channel else "another recipe"
    return UsageError(
        "TensorRT-LLM has no format for this quantization.",
        where=linear,
        expected=f"weights + inputs as one of: {_SUPPORTED}",
        found=found,
        fix=other_quantization(scheme, recipes),
    )


def language_schemes(schemes: Mapping[str, Scheme]) -> dict[str, Scheme]:
    """The schemes of the language model's linears alone."""
    return {name: scheme for name, scheme in schemes.items() if name.startswith("language_model.")}


def module_quant_formats(
    spec: LanguageSpec, schemes: Mapping[str, Scheme]
) -> dict[tuple[int, str], QuantFormat | None]:
    """The format of every linear of TensorRT-LLM's, by layer and name, in order.

    Raises:
        UsageError: a linear has no format, linears that are fused differ, the head is quantized, or row-wise FP8 does
            not cover the whole model.
    """
    if LM_HEAD_LINEAR in schemes:
        raise UsageError(
            "TensorRT-LLM keeps the language-model head in 16 bits.",
            where=LM_HEAD_LINEAR,
            found=f"a rule that quantizes it to {schemes[LM_HEAD_LINEAR].weights.type}",
            fix="a recipe without that rule",
        )
    quant_formats: dict[tuple[int, str], QuantFormat | None] = {}
    for layer in range(spec.num_layers):
        for module, parts in MODULES.items():
            linears = [f"language_model.model.layers.{layer}.{part}" for part in parts]
            quant_formats[layer, module] = _same(linears, [schemes.get(linear) for linear in linears])
        gate_up = [f"language_model.model.layers.{layer}.{MODULES[module][0]}" for module in FUSED_MLP]
        _same(gate_up, [schemes.get(linear) for linear in gate_up])
    found = {fmt.algorithm if fmt else None for fmt in quant_formats.values()}
    if ROWWISE in found and len(found) > 1:
        raise UsageError(
            "Row-wise FP8 in TensorRT-LLM is for all linears of the language model or for none.",
            where="language_model",
            found=", ".join(sorted(name or "16 bits" for name in found)),
            fix="--recipe fp8-rowwise, or static FP8 (fp8-tensor) for the quantized part",
        )
    return quant_formats


def _same(linears: list[str], schemes: list[Scheme | None]) -> QuantFormat | None:
    quant_formats = [format_of(linear, scheme) for linear, scheme in zip(linears, schemes, strict=True)]
    if any(fmt != quant_formats[0] for fmt in quant_formats):
        raise UsageError(
            "Linears that TensorRT-LLM runs as one product are quantized in different ways.",
            where=", ".join(linears),
            expected="one way for all of them",
            found=", ".join(fmt.algorithm if fmt else "16 bits" for fmt in quant_formats),
            fix="one rule of the recipe for all of them",
        )
    return quant_formats[0]
