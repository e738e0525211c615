"""The target: what it refuses beforehand, and what it rounds."""

from __future__ import annotations

import pytest

from r1v_export.config import BuildConfig, ParityConfig
from r1v_export.errors import CapabilityError
from r1v_export.targets.registry import get_target

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
