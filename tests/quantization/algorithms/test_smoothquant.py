from __future__ import annotations

import torch

from r1v_export.quantization.algorithms.rtn import round_to_nearest
from r1v_export.quantization.algorithms.smoothquant import smoothing_scale
from r1v_export.quantization.quantized_linear import quantize_dequantize, scale_for
from tests.quantization.conftest import Case


def int8_error(case: Case, scale: torch.Tensor) -> float:
    """Squared error of the outputs with INT8 weights and inputs of one static scale."""
    x = case.x / scale
    rounded = quantize_dequantize(x, scale_for(x.abs().max(), "int8"), "int8")
    weight = round_to_nearest(case.weight * scale, "int8").dequantize()
    return float((rounded @ weight.T - case.x @ case.weight.T).square().sum())


def test_the_scale_is_the_papers(case: Case) -> None:
    found = smoothing_scale([case.weight[:40], case.weight[40:]], case.x.abs().amax(0), alpha=0.25)
    expected = case.x.abs().amax(0) ** 0.25 / case.weight.abs().amax(0) ** 0.75
    torch.testing.assert_close(found, expected)


def test_alpha_one_makes_all_activations_equally_large(case: Case) -> None:
    scale = smoothing_scale([case.weight], case.x.abs().amax(0), alpha=1.0)
    torch.testing.assert_close((case.x / scale).abs().amax(0), torch.ones(128))


def test_outlier_channels_cost_much_less(case: Case) -> None:
    case.x[:, 3] *= 100
    smoothed = smoothing_scale([case.weight], case.x.abs().amax(0))
    assert int8_error(case, smoothed) < 0.2 * int8_error(case, torch.ones(128))


def test_channels_that_are_never_used_keep_scale_one(case: Case) -> None:
    absmax, weight = case.x.abs().amax(0), case.weight.clone()
    absmax[3], weight[:, 7] = 0, 0
    assert smoothing_scale([weight], absmax)[[3, 7]].tolist() == [1.0, 1.0]
