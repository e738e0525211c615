"""Metrics against closed forms in numpy and against torch, and as properties of any arrays."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import reduce

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from r1v_export.parity import metrics
from r1v_export.parity.metrics import (
    LogitStatistics,
    TensorStatistics,
    TokenStatistics,
    first_divergence,
    kl_divergence,
)

RNG = np.random.default_rng(7)
FINITE = st.floats(-1e3, 1e3, width=32)
SHAPES = hnp.array_shapes(min_dims=1, max_dims=4, max_side=5)


@st.composite
def pairs_of_arrays(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    shape = draw(SHAPES)
    return tuple(draw(hnp.arrays(np.float32, shape, elements=FINITE)) for _ in range(2))


TOKENS = st.lists(st.integers(0, 3), max_size=8)


def noisy_pair(*shape: int) -> tuple[np.ndarray, np.ndarray]:
    reference = RNG.normal(size=shape).astype(np.float32)
    return reference, reference + RNG.normal(scale=1e-2, size=shape).astype(np.float32)


def test_errors_are_those_of_their_definitions():
    a, b = noisy_pair(4, 5, 6)
    found = TensorStatistics.of(a, b).metrics()
    a, b = a.astype(np.float64), b.astype(np.float64)
    floor = np.maximum(np.abs(a), np.sqrt((a**2).mean(-1, keepdims=True)))
    rows_a, rows_b = a.reshape(-1, 6), b.reshape(-1, 6)
    cosines = [x @ y / (np.linalg.norm(x) * np.linalg.norm(y)) for x, y in zip(rows_a, rows_b, strict=True)]
    assert found == pytest.approx(
        {
            "max_abs_error": np.abs(b - a).max(),
            "mean_abs_error": np.abs(b - a).mean(),
            "relative_error": np.linalg.norm(b - a) / np.linalg.norm(a),
            "max_relative_error": (np.abs(b - a) / floor).max(),
            "min_row_cosine": min(cosines),
            "snr_db": 10 * np.log10((a**2).sum() / ((b - a) ** 2).sum()),
        },
        rel=1e-12,
    )


def test_kl_and_top1_are_those_of_torch():
    a, b = (RNG.normal(scale=8, size=(50, 300)).astype(np.float32) for _ in range(2))
    log_p, log_q = (torch.from_numpy(x).double().log_softmax(-1) for x in (a, b))
    expected = torch.nn.functional.kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1).numpy()
    np.testing.assert_allclose(kl_divergence(a, b), expected, rtol=1e-10)
    found = LogitStatistics.of(a, b).metrics()
    assert found["mean_kl"] == pytest.approx(expected.mean(), rel=1e-10)
    assert found["max_kl"] == pytest.approx(expected.max(), rel=1e-10)
    assert found["top1_agreement"] == (log_p.argmax(-1) == log_q.argmax(-1)).double().mean().item()


def test_kl_does_not_overflow_with_large_logits():
    assert kl_divergence(np.array([[3e4, 0.0]]), np.array([[3e4, 1.0]]))[0] == 0.0


def test_row_cosines_are_those_of_torch():
    a, b = noisy_pair(20, 9)
    cosines = torch.nn.functional.cosine_similarity(torch.from_numpy(a).double(), torch.from_numpy(b).double(), dim=-1)
    assert TensorStatistics.of(a, b).min_row_cosine == pytest.approx(cosines.min().item(), rel=1e-12)


@settings(deadline=None)
@given(pairs_of_arrays())
def test_equal_arrays_have_no_error(pair: tuple[np.ndarray, np.ndarray]):
    statistics = TensorStatistics.of(pair[0], pair[0].copy())
    assert statistics.relative_error == statistics.max_abs_error == statistics.max_relative_error == 0
    assert statistics.snr_db == math.inf
    assert statistics.min_row_cosine == pytest.approx(1.0)


@settings(deadline=None)
@given(st.lists(pairs_of_arrays(), min_size=1, max_size=4))
def test_statistics_of_parts_merge_to_those_of_the_whole(pairs: list[tuple[np.ndarray, np.ndarray]]):
    # Rows of one width, so that the whole is one array too.
    rows = [tuple(np.resize(endpoint, (max(1, endpoint.size // 4), 4)) for endpoint in pair) for pair in pairs]
    merged = reduce(TensorStatistics.merge, (TensorStatistics.of(a, b) for a, b in rows))
    whole = TensorStatistics.of(*(np.concatenate(endpoint) for endpoint in zip(*rows, strict=True)))
    assert merged.elements == whole.elements
    assert merged.metrics() == pytest.approx(whole.metrics(), rel=1e-9)


@settings(deadline=None)
@given(pairs_of_arrays(), st.floats(0.125, 8))
def test_relative_error_does_not_depend_on_scale(pair: tuple[np.ndarray, np.ndarray], scale: float):
    a, b = (endpoint.astype(np.float64) for endpoint in pair)
    once, scaled = TensorStatistics.of(a, b), TensorStatistics.of(a * scale, b * scale)
    assert scaled.relative_error == pytest.approx(once.relative_error, rel=1e-6)
    assert scaled.max_relative_error == pytest.approx(once.max_relative_error, rel=1e-6)


@settings(deadline=None)
@given(pairs_of_arrays())
def test_kl_is_never_negative_and_bounded_by_half_the_squared_logit_error(pair: tuple[np.ndarray, np.ndarray]):
    a, b = (endpoint.reshape(1, -1) for endpoint in pair)
    divergence = kl_divergence(a, b)[0]
    error = np.abs(a.astype(np.float64) - b).max()
    assert 0 <= divergence <= error**2 / 2 + 1e-9


def test_a_small_array_cut_into_blocks_gives_the_same_statistics(monkeypatch: pytest.MonkeyPatch):
    a, b = noisy_pair(3, 7, 5)
    whole = TensorStatistics.of(a, b, "s")
    monkeypatch.setattr(metrics, "_BLOCK_ELEMENTS", 12)
    in_blocks = TensorStatistics.of(a, b, "s")
    assert in_blocks.worst == whole.worst
    assert in_blocks.metrics() == pytest.approx(whole.metrics(), rel=1e-12)


def test_the_worst_element_is_found_wherever_it_is():
    a, b = noisy_pair(4, 3, 8)
    b[2, 1, 5] += 3
    worst = TensorStatistics.of(a, b, "sample 9", offset=10).worst
    assert (worst.sample, worst.index) == ("sample 9", (12, 1, 5))
    assert (worst.reference, worst.candidate) == (a[2, 1, 5], b[2, 1, 5])


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("endpoint", ["reference", "candidate"])
def test_a_nan_or_infinity_on_either_side_is_an_infinite_error_and_named(value: float, endpoint: str):
    a, b = noisy_pair(6, 4)
    (a if endpoint == "reference" else b)[3, 2] = value
    statistics = TensorStatistics.of(a, b, "s").merge(TensorStatistics.of(*noisy_pair(6, 4), "t"))
    found = statistics.metrics()
    assert {found[name] for name in ("max_abs_error", "mean_abs_error", "relative_error")} == {math.inf}
    assert (found["min_row_cosine"], found["snr_db"]) == (-1.0, -math.inf)
    assert (statistics.worst.sample, statistics.worst.index) == ("s", (3, 2))
    assert getattr(statistics, f"nonfinite_{endpoint}") == statistics.nonfinite == 1


def test_infinities_on_both_sides_do_not_cancel():
    a = np.array([1.0, math.inf])
    assert TensorStatistics.of(a, a).metrics()["max_abs_error"] == math.inf


def test_logits_with_a_nan_have_infinite_kl_and_no_agreement():
    a, b = noisy_pair(2, 5)
    b[0, 3] = math.nan
    found = LogitStatistics.of(a, b).metrics()
    assert (found["mean_kl"], found["max_kl"], found["top1_agreement"]) == (math.inf, math.inf, 0.0)


def test_other_shapes_are_an_infinite_error_and_reported():
    statistics = TensorStatistics.of(np.zeros((2, 3)), np.zeros((3, 2)), "s")
    assert statistics.metrics()["max_abs_error"] == math.inf
    assert statistics.shape_mismatch == "s: [2, 3] in the reference, [3, 2] in the candidate"


def test_a_reference_of_zeros_makes_any_error_infinite():
    zeros, ones = np.zeros((2, 2)), np.ones((2, 2))
    assert TensorStatistics.of(zeros, ones).relative_error == math.inf
    assert TensorStatistics.of(zeros, ones).min_row_cosine == 0.0
    assert TensorStatistics.of(zeros, zeros).relative_error == 0.0
    assert TensorStatistics.of(zeros, zeros).min_row_cosine == 1.0


def test_errors_by_token_are_the_largest_of_all_rows():
    a, b = noisy_pair(6, 4)
    merged = LogitStatistics.of(a[:3], b[:3]).merge(LogitStatistics.of(a[3:], b[3:]))
    np.testing.assert_array_equal(merged.error_by_token, np.abs(a - b).max(0))
    assert merged.rows == 6


def test_the_margin_is_the_lead_of_the_best_token():
    assert metrics.top1_margin(np.array([1.0, 5.0, 3.5, 5.0 - 4])) == 1.5


@settings(deadline=None)
@given(TOKENS, TOKENS)
def test_the_first_divergence_is_where_common_beginnings_end(a: list[int], b: list[int]):
    position = first_divergence(a, b)
    if position is None:
        assert a == b
    else:
        assert a[:position] == b[:position]
        assert a[position : position + 1] != b[position : position + 1]


@settings(deadline=None)
@given(TOKENS, TOKENS)
def test_token_agreement_is_one_only_for_equal_sequences(a: list[int], b: list[int]):
    found = TokenStatistics.of(a, b).metrics()
    assert (found["token_agreement"] == 1.0) == (a == b) == (found["sequence_agreement"] == 1.0)


def test_token_statistics_count_the_longer_sequence():
    merged = TokenStatistics.of([1, 2, 3], [1, 2]).merge(TokenStatistics.of([5], [5]))
    assert merged == TokenStatistics(sequences=2, identical_sequences=1, tokens=4, agreeing_tokens=3)
    assert merged.metrics() == {"token_agreement": 0.75, "sequence_agreement": 0.5}


def flipped(rows: int, flips: int, gap: float) -> LogitStatistics:
    """Of `rows` rows whose best logits are `gap` apart, the candidate prefers the other one in the first `flips`."""
    reference = np.tile(np.array([4.0 + gap, 4.0, -1.0]), (rows, 1))
    candidate = reference.copy()
    candidate[:flips, 1] += 2 * gap
    parts = [LogitStatistics.of(reference[row : row + 1], candidate[row : row + 1]) for row in range(rows)]
    return reduce(LogitStatistics.merge, parts)


def test_a_flip_between_nearly_equal_logits_is_a_near_tie_and_one_between_others_is_not():
    near, real = flipped(32, 1, gap=0.01), flipped(32, 1, gap=0.3)
    assert near.metrics()["top1_agreement"] == real.metrics()["top1_agreement"] == 31 / 32
    assert (near.near_ties(0.1), near.top1_agreement(0.1)) == (1, 1.0)
    assert (real.near_ties(0.1), real.top1_agreement(0.1)) == (0, 31 / 32)
    assert near.flip_gaps == pytest.approx((0.01,))


def test_many_flips_are_not_near_ties_however_close_the_logits_are():
    statistics = flipped(40, 12, gap=0.001)
    assert statistics.near_ties(0.1) == 4
    assert statistics.top1_agreement(0.1) == 32 / 40


def test_where_the_distributions_differ_by_more_than_rounding_no_flip_is_a_near_tie():
    near = flipped(32, 1, gap=0.01)
    defect = replace(near, sum_kl=32 * 1e-3)
    assert replace(near, sum_kl=32 * 1e-4).near_ties(0.1) == 1
    assert (defect.near_ties(0.1), defect.top1_agreement(0.1)) == (0, 31 / 32)


def test_rows_that_are_not_finite_have_no_near_ties():
    reference = np.zeros((2, 3))
    statistics = LogitStatistics.of(reference, np.full((2, 3), math.nan))
    assert (statistics.near_ties(1.0), statistics.top1_agreement(1.0)) == (0, 0.0)
