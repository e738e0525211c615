from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from transformers import (
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from r1v_export.errors import GraphError, UsageError
from r1v_export.runner.sampling import Sampler, Sampling, candidates

VOCAB = 300


def logits(seed: int = 0, spread: float = 3.0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(VOCAB) * spread).astype(np.float32)


def transformers_probabilities(logits_V: np.ndarray, seen: list[int], sampling: Sampling) -> np.ndarray:
    processors = LogitsProcessorList([RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty)])
    processors.append(TemperatureLogitsWarper(sampling.temperature))
    if sampling.top_k:
        processors.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        processors.append(TopPLogitsWarper(sampling.top_p))
    scores = processors(torch.tensor([seen]), torch.from_numpy(logits_V.copy())[None])
    return scores.double().softmax(-1)[0].numpy()


@pytest.mark.parametrize("temperature", [0.3, 0.6, 1.0, 2.0])
@pytest.mark.parametrize("top_k", [0, 1, 7, VOCAB + 5])
@pytest.mark.parametrize("top_p", [0.01, 0.5, 0.95, 1.0])
@pytest.mark.parametrize("repetition_penalty", [0.8, 1.0, 1.05, 1.5])
def test_probabilities_are_those_of_transformers(temperature, top_k, top_p, repetition_penalty):
    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, repetition_penalty=repetition_penalty)
    seen = [3, 3, 17, 200, 299]
    expected = transformers_probabilities(logits(), seen, sampling)
    sampler = Sampler(sampling, seen, VOCAB)
    tokens, probabilities = candidates(sampler._penalised(logits()), sampling)
    ours = np.zeros(VOCAB)
    ours[tokens] = probabilities / probabilities.sum()
    np.testing.assert_array_equal(ours > 0, expected > 0)
    np.testing.assert_allclose(ours, expected, atol=2e-6)


def test_tokens_equal_to_the_last_of_top_k_stay_as_in_transformers():
    flat = np.array([1.0, 2.0, 2.0, 2.0, 0.0], dtype=np.float32)
    tokens, _ = candidates(flat, Sampling(temperature=1.0, top_k=2))
    assert sorted(tokens) == [1, 2, 3]


def test_greedy_takes_the_likeliest_token_whatever_the_other_settings():
    sampler = Sampler(Sampling(temperature=0, top_p=0.1, top_k=3, seed=5), [], VOCAB)
    assert sampler.next(logits()) == int(logits().argmax())


def test_drawn_tokens_follow_the_distribution():
    """Chi-square against the transformers probabilities: 20,000 draws, significance 1e-4."""
    sampling = Sampling(temperature=0.9, top_k=12, top_p=0.9, seed=1)
    expected = transformers_probabilities(logits(), [0], sampling)
    sampler = Sampler(sampling, [], VOCAB)
    draws = 20_000
    counts = np.bincount([sampler.next(logits()) for _ in range(draws)], minlength=VOCAB)
    kept = expected > 0
    assert counts[~kept].sum() == 0
    chi_square = ((counts[kept] - draws * expected[kept]) ** 2 / (draws * expected[kept])).sum()
    degrees = int(kept.sum()) - 1
    # Wilson-Hilferty: the chi-square quantile at 1 - 1e-4 (normal quantile 3.719).
    limit = degrees * (1 - 2 / (9 * degrees) + 3.719 * (2 / (9 * degrees)) ** 0.5) ** 3
    assert chi_square < limit


def test_the_same_seed_gives_the_same_tokens_and_another_seed_others():
    def tokens(seed: int) -> list[int]:
        sampler = Sampler(Sampling(temperature=1.5, seed=seed), [], VOCAB)
        return [sampler.next(logits(step)) for step in range(30)]

    assert tokens(3) == tokens(3)
    assert tokens(3) != tokens(4)


def test_repetition_penalty_counts_the_answer_so_far():
    tied = np.zeros(4, dtype=np.float32) + 5
    sampler = Sampler(Sampling(repetition_penalty=1.1), [0], 4)
    assert [sampler.next(tied) for _ in range(3)] == [1, 2, 3]


def test_logits_are_left_unchanged():
    given = logits()
    Sampler(Sampling(temperature=0.7, top_k=5, top_p=0.9, repetition_penalty=1.3), [1, 2], VOCAB).next(given)
    np.testing.assert_array_equal(given, logits())


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_logits_that_are_not_finite_name_the_decoder(bad):
    broken = logits()
    broken[150] = bad
    with pytest.raises(GraphError, match="1 of 300") as error:
        Sampler(Sampling(), [], VOCAB).next(broken)
    assert error.value.where == "decoder"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_new_tokens", 0),
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("top_k", -1),
        ("repetition_penalty", 0.0),
        ("seed", -1),
        ("stop", ("",)),
    ],
)
def test_a_setting_out_of_range_is_named(field, value):
    with pytest.raises(UsageError, match=field):
        Sampling(**{field: value})


@pytest.mark.parametrize("temperature", [5e-324, 1e-300, 1e300])
@pytest.mark.parametrize("penalty", [1.0, 1e-300, 1e300])
def test_extreme_settings_draw_a_token_and_no_warning_of_numpy(temperature, penalty):
    logits = np.array([3e38, 1, -1, -3e38, -np.inf], np.float32)
    with warnings.catch_warnings(action="error"):
        sampling = Sampling(temperature=temperature, repetition_penalty=penalty, seed=1)
        token = Sampler(sampling, [0, 3], logits.size).next(logits)
    assert token in range(4)


def test_the_lowest_temperature_takes_the_likeliest_token():
    logits = np.array([1, 3, 2], np.float32)
    with warnings.catch_warnings(action="error"):
        assert Sampler(Sampling(temperature=5e-324), [], 3).next(logits) == 1
