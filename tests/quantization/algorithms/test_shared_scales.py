"""Linears that engines fuse share scales; what they compute stays what it was, as far as the shared scale allows."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from r1v_export.errors import UsageError
from r1v_export.quantization.algorithms.rtn import round_to_nearest, round_to_one_scale
from r1v_export.quantization.algorithms.shared_scales import (
    check_alike,
    has_one_scale,
    share_input_scale,
    share_weight_scale,
)
from r1v_export.quantization.quantized_linear import QuantizedLinear

NAMES = ("q", "k", "v")


def weights(seed: int = 0, out_features: int = 16, in_features: int = 64) -> list[torch.Tensor]:
    """Three weights of very different size."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(out_features, in_features, generator=generator) * size for size in (1.0, 0.02, 7.0)]


def per_row(seed: int = 0) -> list[QuantizedLinear]:
    return [round_to_nearest(weight, "fp8") for weight in weights(seed)]


@given(st.integers(0, 1000))
def test_weights_are_rounded_again_not_only_given_another_scale(seed):
    linears = per_row(seed)
    shared = share_weight_scale(NAMES, linears)

    assert has_one_scale(shared)
    for before, after in zip(linears, shared, strict=True):
        # Of two neighboring FP8 numbers the larger is at most an eighth larger, down to subnormals of the scale.
        error = (after.dequantize() - before.dequantize()).abs()
        allowed = before.dequantize().abs() / 16 + after.scale[:, None] * 2**-9
        assert bool((error <= allowed * 1.0001).all())


def test_the_row_with_the_largest_scale_keeps_its_quantized_values():
    linears = per_row()
    shared = share_weight_scale(NAMES, linears)

    largest = int(linears[2].scale.argmax())
    assert shared[2].scale[0] == linears[2].scale.max()
    assert torch.equal(shared[2].qweight[largest].view(torch.uint8), linears[2].qweight[largest].view(torch.uint8))


def test_linears_that_share_a_scale_already_come_back_bit_for_bit():
    absmax = torch.stack([weight.abs().max() for weight in weights()]).max()
    linears = [round_to_one_scale(weight, "fp8", absmax) for weight in weights()]

    for before, after in zip(linears, share_weight_scale(NAMES, linears), strict=True):
        assert torch.equal(before.qweight.view(torch.uint8), after.qweight.view(torch.uint8))
        assert torch.equal(before.scale, after.scale)


def test_rounding_the_originals_is_what_calibration_with_one_scale_does():
    absmax = torch.stack([weight.abs().max() for weight in weights()]).max()

    shared = share_weight_scale(NAMES, per_row(), weights())
    for after, weight in zip(shared, weights(), strict=True):
        expected = round_to_one_scale(weight, "fp8", absmax)
        assert torch.equal(after.dequantize(), expected.dequantize())


def test_inputs_share_the_largest_scale():
    linears = [
        replace(linear, input_type="fp8", input_scale=torch.tensor(s))
        for linear, s in zip(per_row(), (1, 3, 2), strict=True)
    ]

    shared = share_input_scale(NAMES, linears)

    assert [float(linear.input_scale) for linear in shared] == [3, 3, 3]


def test_linears_without_input_scales_come_back_as_they_are():
    linears = per_row()
    assert share_input_scale(NAMES, linears) == tuple(linears)


def test_linears_of_different_kinds_are_refused_with_what_they_are():
    one, other = round_to_nearest(weights()[0], "fp8"), round_to_nearest(weights()[1], "int4", 32)

    with pytest.raises(UsageError, match="fp8; int4 in groups of 32"):
        check_alike(("gate", "up"), [one, other])


def test_groups_cannot_share_one_scale():
    with pytest.raises(UsageError, match="int4 in groups of 32"):
        share_weight_scale(NAMES, [round_to_nearest(weight, "int4", 32) for weight in weights()])
