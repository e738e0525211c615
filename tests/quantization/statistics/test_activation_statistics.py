"""Activation statistics: equal to numpy's, and the same however the samples are distributed."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from r1v_export.quantization.statistics.activation_statistics import (
    BINS,
    ActivationStatistics,
    BlockStatistics,
    add_gram,
    bin_edges,
    bin_index,
    from_tensors,
    merge,
    merge_blocks,
    to_tensors,
)

CHANNELS = 5
magnitudes = st.floats(min_value=2.0**-40, max_value=2.0**23, allow_nan=False, width=32)


def gram(*parts: Tensor) -> Tensor:
    total = torch.zeros(CHANNELS, CHANNELS)
    for part in parts:
        add_gram(total, part)
    return total


def activations(rows: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, CHANNELS, generator=generator) * torch.logspace(-3, 3, CHANNELS)


def merged(parts: Sequence[Tensor]) -> ActivationStatistics:
    return reduce(merge, map(ActivationStatistics.from_activations, parts), ActivationStatistics.empty(CHANNELS))


def assert_same(a: ActivationStatistics, b: ActivationStatistics) -> None:
    """Bit for bit in maxima and counts, to the last bits in sums."""
    assert torch.equal(a.channel_absmax, b.channel_absmax)
    assert torch.equal(a.histogram, b.histogram)
    assert a.rows == b.rows
    torch.testing.assert_close(a.channel_sum, b.channel_sum, rtol=1e-14, atol=0)


def test_maxima_means_and_counts_are_those_of_numpy() -> None:
    x_NI = activations(1000)
    statistics = ActivationStatistics.from_activations(x_NI)
    absolute = np.abs(x_NI.numpy())
    assert np.array_equal(statistics.channel_absmax.numpy(), absolute.max(0))
    assert statistics.absmax == absolute.max()
    np.testing.assert_allclose(statistics.channel_mean.numpy(), absolute.mean(0, dtype=np.float64), rtol=1e-6)
    assert statistics.rows == 1000


def test_the_histogram_is_numpys_over_the_same_edges() -> None:
    absolute = activations(5000).abs()
    expected, _ = np.histogram(absolute.double().numpy(), bins=bin_edges().numpy())
    assert np.array_equal(ActivationStatistics.from_activations(absolute).histogram.numpy(), expected)


@settings(deadline=None)
@given(st.lists(magnitudes, min_size=1, max_size=50))
def test_a_magnitude_lies_between_the_edges_of_its_bin(values: list[float]) -> None:
    x = torch.tensor(values, dtype=torch.float32)
    index, edges = bin_index(x).long(), bin_edges()
    assert (edges[index] <= x.double()).all()
    assert (x.double() < edges[index + 1]).all()


def test_magnitudes_outside_all_bins_count_in_the_outermost_ones() -> None:
    assert bin_index(torch.tensor([0.0, 1e-30, 2.0**24, 1e30])).tolist() == [0, 0, BINS - 1, BINS - 1]


def test_a_bin_is_at_most_a_sixteenth_wide() -> None:
    edges = bin_edges()
    assert ((edges[1:] / edges[:-1]) <= 1 + 1 / 16).all()


@settings(max_examples=50, deadline=None)
@given(cuts=st.lists(st.integers(0, 200), max_size=6), order=st.randoms(use_true_random=False))
def test_merging_shards_in_any_order_gives_what_one_run_gives(cuts: list[int], order) -> None:
    x_NI = activations(200)
    parts = list(torch.tensor_split(x_NI, sorted(cuts)))
    order.shuffle(parts)
    assert_same(merged(parts), ActivationStatistics.from_activations(x_NI))


def test_large_activations_are_taken_in_chunks_without_changing_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    x_NI = activations(333)
    whole = ActivationStatistics.from_activations(x_NI)
    monkeypatch.setattr("r1v_export.quantization.statistics.activation_statistics._CHUNK_ELEMENTS", 64)
    assert_same(ActivationStatistics.from_activations(x_NI), whole)


def test_leading_axes_are_rows() -> None:
    x_NI = activations(24)
    assert_same(
        ActivationStatistics.from_activations(x_NI.view(2, 3, 4, CHANNELS)), ActivationStatistics.from_activations(x_NI)
    )


def test_half_precision_activations_are_measured_exactly() -> None:
    x_NI = activations(100).bfloat16()
    assert_same(ActivationStatistics.from_activations(x_NI), ActivationStatistics.from_activations(x_NI.float()))


def test_no_rows_are_the_neutral_element() -> None:
    x_NI = activations(10)
    nothing = ActivationStatistics.from_activations(x_NI[:0])
    assert_same(nothing, ActivationStatistics.empty(CHANNELS))
    assert_same(
        merge(nothing, ActivationStatistics.from_activations(x_NI)), ActivationStatistics.from_activations(x_NI)
    )
    assert nothing.channel_mean.tolist() == [0] * CHANNELS


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_one_value_that_is_not_finite_shows(value: float) -> None:
    x_NI = activations(10)
    assert ActivationStatistics.from_activations(x_NI).is_finite
    x_NI[7, 2] = value
    assert not ActivationStatistics.from_activations(x_NI).is_finite
    assert not merge(
        ActivationStatistics.from_activations(x_NI), ActivationStatistics.from_activations(activations(3))
    ).is_finite


def test_statistics_of_other_channels_cannot_be_merged() -> None:
    with pytest.raises(ValueError, match="5 and of 6 channels"):
        merge(ActivationStatistics.empty(5), ActivationStatistics.empty(6))


def test_the_gram_matrix_gives_the_squared_error_of_any_weight_change() -> None:
    x_NI, change_OI = activations(50).view(5, 10, CHANNELS), torch.randn(3, CHANNELS)
    error = (x_NI @ change_OI.T).square().sum()
    torch.testing.assert_close((change_OI @ gram(*x_NI) @ change_OI.T).trace(), error)


def block(seed: int) -> BlockStatistics:
    x_NI = activations(20, seed)
    return BlockStatistics(
        {"a": ActivationStatistics.from_activations(x_NI), "a.b": ActivationStatistics.from_activations(2 * x_NI)},
        {"a": gram(x_NI)},
    )


def test_blocks_merge_by_name_and_sum_their_gram_matrices() -> None:
    both = merge_blocks(block(0), block(1))
    assert_same(both.activations["a"], merge(block(0).activations["a"], block(1).activations["a"]))
    assert torch.equal(both.grams["a"], block(0).grams["a"] + block(1).grams["a"])


def test_blocks_of_different_linears_cannot_be_merged() -> None:
    with pytest.raises(ValueError, match="different blocks"):
        merge_blocks(block(0), BlockStatistics({}, {}))


def test_statistics_survive_the_way_through_named_tensors() -> None:
    restored = from_tensors(to_tensors(block(0)))
    assert restored.activations.keys() == block(0).activations.keys()
    for name, statistics in block(0).activations.items():
        assert_same(restored.activations[name], statistics)
    assert torch.equal(restored.grams["a"], block(0).grams["a"])


def test_a_missing_tensor_is_noticed() -> None:
    tensors = to_tensors(block(0))
    del tensors["a.b/histogram"]
    with pytest.raises(ValueError, match=r"a\.b"):
        from_tensors(tensors)
