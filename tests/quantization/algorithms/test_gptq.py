from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from r1v_export.quantization.algorithms import gptq as module
from r1v_export.quantization.algorithms.clipping import clipped_params
from r1v_export.quantization.algorithms.gptq import compensation, gptq, grouped_order
from r1v_export.quantization.quant_params import QuantParams
from tests.quantization.conftest import Case, make_case


def optimal_brain_quantizer(
    weight: Tensor, gram: Tensor, params: QuantParams, damping: float, act_order: bool
) -> np.ndarray:
    """The method as the paper derives it, slow and plain: the inverse Hessian of the columns that are left is formed
    anew after every column, by Gaussian elimination of the one that was rounded. Returns the quantized weights."""
    in_features = weight.shape[1]
    hessian = gram.double().numpy() + damping * float(gram.double().diagonal().mean()) * np.eye(in_features)
    inverse = np.linalg.inv(hessian)
    left, quantized = weight.double().numpy().copy(), np.zeros(weight.shape)
    order = np.argsort(-np.diag(gram.numpy()), kind="stable") if act_order else np.arange(in_features)
    scale = params.scale.double().numpy().repeat(in_features // params.scale.shape[1], axis=1)
    zero = np.zeros_like(scale)
    if params.zero_point is not None:
        zero = params.zero_point.double().numpy().repeat(in_features // params.scale.shape[1], axis=1)
    low, high = {"int4": (-8, 7), "uint4": (0, 15), "int8": (-128, 127)}[params.kind]
    for j in order:
        qweight = np.clip(np.round(left[:, j] / scale[:, j]) + zero[:, j], low, high)
        quantized[:, j] = (qweight - zero[:, j]) * scale[:, j]
        error = (left[:, j] - quantized[:, j]) / inverse[j, j]
        left -= np.outer(error, inverse[j])
        inverse -= np.outer(inverse[:, j], inverse[j]) / inverse[j, j]
    return quantized


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize(("kind", "group"), [("int4", 32), ("uint4", 32), ("int8", None)])
def test_it_equals_the_naive_method(
    monkeypatch: pytest.MonkeyPatch, kind: str, group: int | None, act_order: bool
) -> None:
    monkeypatch.setattr(module, "BLOCK", 24)  # several blocks, a ragged last one, several chunks of rows
    monkeypatch.setattr(module, "VALUES_AT_ONCE", 640)
    monkeypatch.setattr(module, "FACTOR_BLOCK", 24)
    case = make_case(out_features=24, in_features=64, tokens=256)
    params = QuantParams.from_weight(case.weight, kind, group)
    expected = optimal_brain_quantizer(case.weight, case.gram, params, 0.01, act_order)
    linear = gptq(case.weight.double(), params, compensation(case.gram.double(), 0.01, act_order))
    assert linear.validate() is None
    np.testing.assert_allclose(linear.dequantize().numpy(), expected, rtol=0, atol=1e-6)


def test_large_products_of_bfloat16_cost_next_to_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """And are used: values differ, in columns behind the first block alone."""
    monkeypatch.setattr(module, "BLOCK", 32)
    case = make_case(out_features=48, in_features=256, tokens=512)
    params = QuantParams.from_weight(case.weight, "int4", 32)
    exact, rounded = (compensation(case.gram, products=dtype) for dtype in (torch.float32, torch.bfloat16))
    expected, found = (gptq(case.weight, params, each) for each in (exact, rounded))
    same_I = (expected.qweight == found.qweight).all(0)[exact.order]
    assert same_I[:32].all()
    assert not same_I[32:].all()
    nearest = case.error(params.quantize_dequantize(case.weight))
    errors = case.error(expected.dequantize()), case.error(found.dequantize())
    assert abs(errors[1] / errors[0] - 1) < 0.02 < 0.2 * abs(nearest / errors[0] - 1)


@pytest.mark.parametrize("block", [48, 128])
def test_the_factor_is_that_of_the_damped_matrix(monkeypatch: pytest.MonkeyPatch, case: Case, block: int) -> None:
    """By the paper: the Cholesky factor of the inverse, its rows divided by their diagonal, is the inverse of U."""
    monkeypatch.setattr(module, "FACTOR_BLOCK", block)
    gram = case.gram.double()
    found = compensation(gram, 0.01)
    assert found.order.tolist() == np.argsort(-np.diag(gram.numpy()), kind="stable").tolist()
    damped = gram[found.order][:, found.order] + 0.01 * gram.diagonal().mean() * torch.eye(len(gram))
    paper = torch.linalg.cholesky(torch.linalg.inv(damped), upper=True)
    factor = found.factor.triu(1) + torch.eye(len(gram))
    torch.testing.assert_close(torch.linalg.inv(factor), paper / paper.diagonal()[:, None])


def test_the_factor_is_the_same_with_several_threads() -> None:
    x = torch.randn(1024, 512, generator=torch.Generator().manual_seed(0))  # wide enough for operators to use them
    gram, threads = x.T @ x, torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        expected = compensation(gram, 0.01).factor.triu(1)
        torch.set_num_threads(2)
        found = compensation(gram, 0.01).factor.triu(1)
    finally:
        torch.set_num_threads(threads)
    assert (found - expected).abs().max() < 1e-5


@pytest.mark.parametrize("kind", ["int4", "uint4"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_outputs_are_much_nearer_than_rounding_to_nearest_makes_them(kind: str, seed: int) -> None:
    case = make_case(seed=seed)
    params = QuantParams.from_weight(case.weight, kind, 32)
    nearest = case.error(params.quantize_dequantize(case.weight))
    in_order, act_order = (
        case.error(gptq(case.weight, params, compensation(case.gram, act_order=by_diagonal)).dequantize())
        for by_diagonal in (False, True)
    )
    assert act_order < in_order < 0.8 * nearest
    clipped = clipped_params(case.weight, kind, 32, case.gram)
    assert case.error(gptq(case.weight, clipped, compensation(case.gram)).dequantize()) < act_order


def test_the_features_of_largest_activation_are_the_first_group(case: Case) -> None:
    order = grouped_order(case.gram, 32).numpy()
    expected = np.argsort(-np.diag(case.gram.numpy()), kind="stable").reshape(-1, 32)
    assert [set(group) for group in order.reshape(-1, 32)] == [set(group) for group in expected]


def test_features_within_a_group_keep_their_order(case: Case) -> None:
    order = grouped_order(case.gram, 32).reshape(-1, 32)
    assert bool((order.diff(dim=1) > 0).all())


def test_features_of_equal_activation_stay_where_they_are() -> None:
    assert grouped_order(torch.zeros(64, 64), 32).tolist() == list(range(64))


def test_few_tokens_give_a_singular_matrix_and_still_a_better_weight() -> None:
    case = make_case(tokens=16)
    params = QuantParams.from_weight(case.weight, "int4", 32)
    linear = gptq(case.weight, params, compensation(case.gram, damping=1e-12))
    assert case.error(linear.dequantize()) < case.error(params.quantize_dequantize(case.weight))


def test_without_activations_it_is_rounding_to_nearest(case: Case) -> None:
    params = QuantParams.from_weight(case.weight, "int4", 32)
    linear = gptq(case.weight, params, compensation(torch.zeros_like(case.gram)))
    assert torch.equal(linear.qweight, params.qweight(case.weight))


def test_a_dead_channel_is_rounded_to_nearest(case: Case) -> None:
    case.x[:, 5] = 0
    params = QuantParams.from_weight(case.weight, "int4", 32)
    linear = gptq(case.weight, params, compensation(case.gram))
    assert torch.equal(linear.qweight[:, 5], params.qweight(case.weight)[:, 5])
