from __future__ import annotations

import pytest
import torch

from r1v_export.quantization.algorithms.rtn import round_to_nearest, round_to_one_scale
from tests.quantization.conftest import Case


def test_the_largest_weight_of_a_channel_is_the_largest_fp8_code(case: Case) -> None:
    linear = round_to_nearest(case.weight, "fp8")
    assert linear.validate() is None
    assert (linear.qweight.float().abs().amax(1) == 448).all()
    torch.testing.assert_close(linear.scale, case.weight.abs().amax(1) / 448)


def test_fp8_weights_are_within_half_a_step_of_three_mantissa_bits(case: Case) -> None:
    error = (round_to_nearest(case.weight, "fp8").dequantize() - case.weight).abs()
    smallest = case.weight.abs().amax(1, keepdim=True) / 448 * 2**-6  # normal numbers start here
    assert (error <= torch.maximum(case.weight.abs(), smallest) * 2**-4 * 1.0001).all()


@pytest.mark.parametrize(("kind", "largest"), [("int8", 127), ("int4", 7)])
def test_symmetric_integers_are_within_half_a_step(case: Case, kind: str, largest: int) -> None:
    group = 32 if kind == "int4" else None
    linear = round_to_nearest(case.weight, kind, group)
    assert linear.validate() is None
    assert int(linear.qweight.abs().max()) == largest
    step = linear.scale if group is None else linear.scale.repeat_interleave(group, 1)
    error = (linear.dequantize() - case.weight).abs()
    assert (error <= step.reshape(len(error), -1) * 0.50001).all()


def test_uint4_uses_the_groups_own_range_and_represents_zero_exactly() -> None:
    weight = torch.linspace(-0.1, 1.4, 32)[None]
    linear = round_to_nearest(weight, "uint4", 32)
    assert linear.validate() is None
    assert linear.scale.item() == pytest.approx(0.1)
    assert linear.zero_point is not None
    assert linear.zero_point.item() == 1
    assert {int(linear.qweight.min()), int(linear.qweight.max())} == {0, 15}
    assert (linear.dequantize() - weight).abs().max() <= 0.05001
    zeros = round_to_nearest(torch.cat((weight, torch.zeros(1, 32))), "uint4", 32).dequantize()[1]
    assert (zeros == 0).all()


@pytest.mark.parametrize("kind", ["fp8", "int8"])
def test_one_scale_serves_all_channels(case: Case, kind: str) -> None:
    absmax = 2 * case.weight.abs().max()  # a fused neighbor has the larger weights
    linear = round_to_one_scale(case.weight, kind, absmax)
    assert linear.validate() is None
    assert linear.scale.unique().tolist() == pytest.approx([float(absmax) / {"fp8": 448, "int8": 127}[kind]])


def test_all_zero_weights_keep_usable_scales() -> None:
    for kind, group in (("fp8", None), ("int8", None), ("int4", 32), ("uint4", 32)):
        linear = round_to_nearest(torch.zeros(4, 64), kind, group, clip=True)
        assert linear.validate() is None
        assert (linear.dequantize() == 0).all()
