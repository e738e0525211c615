"""Clipping: the best of the tried ranges, for every group on its own."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from r1v_export.quantization.algorithms.clipping import SHRINKS, clipped_params
from r1v_export.quantization.algorithms.rtn import round_to_nearest
from r1v_export.quantization.quant_params import QuantParams
from tests.quantization.conftest import Case, make_case


@pytest.mark.parametrize("kind", ["int4", "uint4"])
def test_clipping_finds_what_a_search_over_the_outputs_finds(case: Case, kind: str) -> None:
    group = 32
    found = clipped_params(case.weight, kind, group, case.gram)
    for row, index in [(0, 0), (17, 1), (95, 3)]:
        columns = slice(index * group, (index + 1) * group)
        weight, x = case.weight[row : row + 1, columns], case.x[:, columns]
        grids = [QuantParams.from_weight(weight, kind, group, shrink) for shrink in SHRINKS]
        losses = [float((x @ (params.quantize_dequantize(weight) - weight).T).square().sum()) for params in grids]
        assert found.scale[row, index] == grids[int(np.argmin(losses))].scale.squeeze()


@pytest.mark.parametrize("kind", ["int4", "uint4"])
def test_a_scale_of_the_inputs_is_that_of_their_gram_matrix(case: Case, kind: str) -> None:
    scale = 0.5 + torch.rand(128, generator=torch.Generator().manual_seed(0))
    found = clipped_params(case.weight, kind, 32, case.gram, scale)
    expected = clipped_params(case.weight, kind, 32, case.gram / scale / scale[:, None])
    assert torch.equal(found.scale, expected.scale)


@pytest.mark.parametrize("kind", ["int4", "uint4", "int8", "fp8"])
def test_clipping_never_makes_the_weights_worse(case: Case, kind: str) -> None:
    group = 64 if "4" in kind else None

    def error(clip: bool) -> float:
        return float((round_to_nearest(case.weight, kind, group, clip).dequantize() - case.weight).square().sum())

    assert error(clip=True) <= error(clip=False)
    assert kind not in ("int4", "uint4") or error(clip=True) < 0.97 * error(clip=False)


def test_rows_do_not_depend_on_each_other(monkeypatch: pytest.MonkeyPatch, case: Case) -> None:
    whole = clipped_params(case.weight, "int4", 32, case.gram)
    monkeypatch.setattr("r1v_export.quantization.algorithms.clipping._LEAST_ERRORS", 1)
    monkeypatch.setattr("r1v_export.quantization.algorithms.clipping._ERROR_VALUES", 7 * 32)
    torch.testing.assert_close(clipped_params(case.weight, "int4", 32, case.gram).scale, whole.scale, rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["int4", "uint4"])
def test_products_of_bfloat16_decide_only_between_ranges_that_cost_the_same(kind: str) -> None:
    """And are used: some ranges differ."""
    case, size = make_case(out_features=192, in_features=256, tokens=512), 64
    grams = torch.stack([case.gram[start : start + size, start : start + size] for start in range(0, 256, size)])

    def losses(params: QuantParams) -> torch.Tensor:
        error = (params.quantize_dequantize(case.weight) - case.weight).unflatten(1, (-1, size)).double()
        return torch.einsum("ogi,gij,ogj->og", error, grams.double(), error)

    exact = clipped_params(case.weight, kind, size, case.gram)
    rounded = clipped_params(case.weight, kind, size, case.gram, products=torch.bfloat16)
    best, found = losses(exact), losses(rounded)
    assert 0 < int((exact.scale != rounded.scale).sum()) < 0.02 * exact.scale.numel()
    assert bool((found < 1.005 * best).all())
    assert float(found.sum() / best.sum()) < 1.0001
