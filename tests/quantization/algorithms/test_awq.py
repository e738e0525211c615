from __future__ import annotations

from typing import Any

import pytest
import torch

from r1v_export.quantization.algorithms import awq
from r1v_export.quantization.algorithms.awq import scale_of, search_scale
from r1v_export.quantization.algorithms.clipping import clipped_params
from r1v_export.quantization.algorithms.rtn import round_to_nearest
from r1v_export.quantization.quant_params import QuantParams
from tests.quantization.conftest import Case, make_case


def mean_magnitude(case: Case) -> torch.Tensor:
    return case.x.abs().mean(0)


@pytest.mark.parametrize("kind", ["int4", "uint4"])
def test_the_search_finds_what_running_the_linear_finds(case: Case, kind: str) -> None:
    """The paper's own search: run Q(W diag(s)) on x / s for every alpha and compare outputs."""

    def loss(alpha: float) -> float:
        scale = scale_of(mean_magnitude(case), alpha)
        quantized = QuantParams.from_weight(case.weight * scale, kind, 32).quantize_dequantize(case.weight * scale)
        return float(((case.x / scale) @ quantized.T - case.x @ case.weight.T).square().sum())

    best = min((index / 20 for index in range(21)), key=loss)
    found = search_scale([case.weight], case.gram, mean_magnitude(case), kind, 32)
    assert 0 < best < 1
    assert torch.equal(found, scale_of(mean_magnitude(case), best))


@pytest.mark.parametrize("kind", ["int4", "uint4"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_outputs_are_nearer_than_rounding_to_nearest_makes_them(kind: str, seed: int) -> None:
    case = make_case(seed=seed)
    scale = search_scale([case.weight], case.gram, mean_magnitude(case), kind, 32)
    scaled, gram = case.weight * scale, case.gram / scale / scale[:, None]
    nearest = case.error(round_to_nearest(case.weight, kind, 32).dequantize())
    only_scaled = case.error(QuantParams.from_weight(scaled, kind, 32).quantize_dequantize(scaled) / scale)
    clipped = case.error(clipped_params(scaled, kind, 32, gram).quantize_dequantize(scaled) / scale)
    assert clipped < only_scaled < 0.95 * nearest


def test_even_activations_need_no_scale() -> None:
    weight = make_case().weight
    found = search_scale([weight], torch.eye(128), torch.ones(128), "int4", 32)
    assert torch.equal(found, torch.ones(128))


def test_linears_of_one_tensor_share_the_scale_that_is_best_for_their_sum(case: Case) -> None:
    other = make_case(out_features=64, seed=5).weight
    together = search_scale([case.weight, other], case.gram, mean_magnitude(case), "int4", 32)
    concatenated = search_scale([torch.cat((case.weight, other))], case.gram, mean_magnitude(case), "int4", 32)
    assert torch.equal(together, concatenated)


def test_a_sample_of_the_rows_gives_nearly_the_best_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    case = make_case(out_features=768)

    def error(rows: int) -> float:
        monkeypatch.setattr(awq, "SEARCH_ROWS", rows)
        scale = search_scale([case.weight], case.gram, mean_magnitude(case), "int4", 32)
        return case.error(
            QuantParams.from_weight(case.weight * scale, "int4", 32).quantize_dequantize(case.weight * scale) / scale
        )

    assert error(rows=96) < 1.02 * error(rows=768)


def test_a_race_ends_with_the_scale_that_a_full_search_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    case = make_case(out_features=512)
    tried: list[int] = []
    losses = awq._losses

    def counted(rows: torch.Tensor, scales: torch.Tensor, *others: Any) -> torch.Tensor:
        tried.append(len(rows) * len(scales))
        return losses(rows, scales, *others)

    monkeypatch.setattr(awq, "_losses", counted)
    raced = search_scale([case.weight], case.gram, mean_magnitude(case), "int4", 32)
    assert sum(tried) < 0.7 * 21 * 512
    monkeypatch.setattr(awq, "_STANDARD_ERRORS", float("inf"))
    assert torch.equal(search_scale([case.weight], case.gram, mean_magnitude(case), "int4", 32), raced)


def test_dead_channels_get_finite_scales(case: Case) -> None:
    case.x[:, :8] = 0
    scale = search_scale([case.weight], case.gram, mean_magnitude(case), "int4", 32)
    assert (scale.isfinite() & (scale > 0)).all()
    assert torch.equal(scale_of(torch.zeros(128), 0.5), torch.ones(128))
