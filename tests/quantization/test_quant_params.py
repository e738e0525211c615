"""Rounding in blocks of rows, against the same formulas on the whole weight at once."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from r1v_export.quantization import quant_params
from r1v_export.quantization.quant_params import QuantParams
from r1v_export.quantization.quantized_linear import quantize

LARGEST = {"fp8": 448.0, "int8": 127.0, "int4": 7.0}
CASES = [("fp8", None), ("int8", None), ("int4", 32), ("uint4", 32), ("int8", 32)]


@pytest.fixture(autouse=True, params=[1, 3], ids=["one-thread", "three-threads"])
def threads(request: pytest.FixtureRequest) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=[torch.float32, torch.bfloat16, torch.float16])
def weight(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Tensor:
    """Rows that the blocks do not divide: of zeros, of one large value, of the smallest numbers."""
    monkeypatch.setattr(quant_params, "BLOCK_VALUES", 7 * 96)
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(101, 96, generator=generator) * torch.rand(101, 1, generator=generator)
    weight[5] = 0
    weight[50, 17] = 300
    weight[100] *= 1e-6
    return weight.to(request.param)


def at_once(weight: Tensor, kind: str, group: int | None) -> tuple[Tensor, Tensor | None, Tensor]:
    """scale [O, G], zero point and quantized values [O, I] of a whole weight."""
    groups = weight.float().unflatten(1, (-1, group or weight.shape[1]))
    if kind == "uint4":
        low, high = groups.amin(-1).clamp(max=0), groups.amax(-1).clamp(min=0)
        scale = torch.where(high > low, (high - low) / 15, 1.0)
        zero = (-low / scale).round().clamp(0, 15).to(torch.int8)
        return scale, zero, quantize(groups, scale[..., None], kind, zero[..., None]).flatten(1)
    largest = groups.abs().amax(-1)
    scale = torch.where(largest > 0, largest / LARGEST[kind], 1.0)
    return scale, None, quantize(groups, scale[..., None], kind).flatten(1)


@pytest.mark.parametrize(("kind", "group"), CASES)
def test_blocks_of_rows_give_the_bits_of_the_whole_weight(weight: Tensor, kind: str, group: int | None) -> None:
    scale, zero_point, qweight = at_once(weight, kind, group)
    params, linear = (
        QuantParams.from_weight(weight, kind, group),
        QuantParams.round_to_nearest(weight, kind, group),
    )
    for found in (params.qweight(weight), linear.qweight):
        assert found.dtype == qweight.dtype
        assert torch.equal(found.view(torch.uint8), qweight.view(torch.uint8))
    assert torch.equal(params.scale, scale)
    assert torch.equal(linear.scale.reshape(scale.shape), scale)
    assert zero_point is None or torch.equal(params.zero_point, zero_point)


def test_a_shrunk_range_has_a_scale_as_much_smaller(weight: Tensor) -> None:
    params = QuantParams.from_weight(weight, "int4", 32, 0.7)
    largest = weight.float().unflatten(1, (-1, 32)).abs().amax(-1)
    assert torch.equal(params.scale, torch.where(largest > 0, largest * 0.7 / 7, 1.0))


def test_rows_of_a_transposed_weight_are_read_as_they_lie(weight: Tensor) -> None:
    transposed = weight.T.contiguous().T
    assert torch.equal(
        QuantParams.round_to_nearest(transposed, "int4", 32).qweight,
        QuantParams.round_to_nearest(weight, "int4", 32).qweight,
    )
