"""What a tensor is stored as: one table from precisions and schemes to GGUF's types.

Norms, biases, layer scales, embeddings of classes and positions and the patch embedding are F32, which llama.cpp asks
for or which costs nothing. All other matrices follow the table, or `mixture` where the build file names a type.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from r1v_export.config import Precision
from r1v_export.errors import UsageError
from r1v_export.quantization.recipe import Scheme, describe
from r1v_export.targets.input_order import refuse_input_order

GgufType = Literal["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K", "Q5_K", "Q6_K"]
"""Names of `gguf.GGMLQuantizationType`."""

PLAIN: dict[Precision, GgufType] = {"fp32": "F32", "fp16": "F16", "bf16": "BF16"}
"""Precision of a build without calibration -> the type of its matrices."""

KEPT: dict[str, GgufType] = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
"""`ModelSpec.dtype` -> the type of the matrices that a quantized build does not quantize: without loss."""

QUANTIZED: dict[str, GgufType] = {"int8": "Q8_0", "int4": "Q4_0", "uint4": "Q4_1"}
"""Type of a linear's weights -> the type whose blocks hold its quantized values bit for bit."""

K_QUANTS: frozenset[GgufType] = frozenset({"Q4_K", "Q5_K", "Q6_K"})

BLOCK = 32
"""Inputs that share a scale in each of the quantized types that are not K-quants."""
SUPER_BLOCK = 256
"""Inputs of a block of a K-quant: 8 or 16 scales of 6 or 8 bits, and a scale of these."""


def type_of(linear: str, scheme: Scheme) -> GgufType:
    """The type of a quantized linear.

    Raises:
        UsageError: no type holds it.
    """
    refuse_input_order("GGUF", linear, scheme)
    if scheme.has_pre_quant_scale:
        raise UsageError(
            "GGUF has no scale of a linear's inputs.",
            where=linear,
            expected="weights that compute with the inputs as they come",
            found="a pre_quant_scale of its own",
            fix="--target hf-unified",
        )
    found = QUANTIZED.get(scheme.weights.type)
    if found is None:
        raise UsageError(
            "GGUF does not hold this quantization.",
            where=linear,
            expected="int8, int4 or uint4 weights",
            found=describe(scheme),
            fix="--precision int8, int4 or fp16",
        )
    return found


def types_of(schemes: Mapping[str, Scheme]) -> dict[str, GgufType]:
    """The type of every quantized linear.

    Raises:
        UsageError: no type holds one of them.
    """
    return {linear: type_of(linear, scheme) for linear, scheme in schemes.items()}
