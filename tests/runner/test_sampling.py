from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
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
    processors = LogitsProcessorList()
    if sampling.logit_bias:
        processors.append(SequenceBiasLogitsProcessor({(id_,): bias for id_, bias in sampling.logit_bias.items()}))
    processors.append(RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
    processors.append(TemperatureLogitsWarper(sampling.temperature))
    if sampling.top_k:
        processors.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        processors.append(TopPLogitsWarper(sampling.top_p))
    if sampling.min_p:
        processors.append(MinPLogitsWarper(sampling.min_p))
    scores = processors(torch.tensor([seen]), torch.from_numpy(logits_V.copy())[None])
    return scores.double().softmax(-1)[0].numpy()


def probabilities_of(sampler: Sampler) -> np.ndarray:
    """What the next token is drawn from."""
    tokens, probabilities = candidates(sampler._penalized(logits()), sampler.sampling)
    ours = np.zeros(VOCAB)
    ours[tokens] = probabilities / probabilities.sum()
    return ours


def assert_same_distribution(ours: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_array_equal(ours > 0, expected > 0)
    np.testing.assert_allclose(ours, expected, atol=2e-6)


@pytest.mark.parametrize("min_p", [0.02, 0.3, 1.0])
@pytest.mark.parametrize("top_p", [0.8, 1.0])
@pytest.mark.parametrize("logit_bias", [{}, {17: 4.0, 3: -100.0, 299: 1.5}])
def test_min_p_and_bias_are_those_of_transformers(min_p, top_p, logit_bias):
    sampling = Sampling(temperature=1.2, top_p=top_p, min_p=min_p, repetition_penalty=1.1, logit_bias=logit_bias)
    expected = transformers_probabilities(logits(), [3, 17], sampling)
    assert_same_distribution(probabilities_of(Sampler(sampling, [3, 17], VOCAB)), expected)


def test_presence_and_frequency_penalties_count_the_answer_alone():
    """The formula of the OpenAI API's documentation: mu[j] - c[j] * frequency - float(c[j] > 0) * presence."""
    sampling = Sampling(temperature=1.0, presence_penalty=0.7, frequency_penalty=0.4)
    sampler, counts = Sampler(sampling, [5, 6, 7], VOCAB), np.zeros(VOCAB)
    for token in (9, 9, 200, 9):
        assert sampler.next(logits(), forced=token) == token
        counts[token] += 1
    penalized = logits() - counts * 0.4 - (counts > 0) * 0.7
    expected = torch.from_numpy(penalized).double().softmax(-1).numpy()
    assert_same_distribution(probabilities_of(sampler), expected)


def test_penalties_and_bias_choose_the_greedy_token_too():
    tied = np.zeros(4, dtype=np.float32)
    assert Sampler(Sampling(logit_bias={2: 0.5}), [], 4).next(tied) == 2
    sampler = Sampler(Sampling(frequency_penalty=1.0), [0], 4)
    assert [sampler.next(tied) for _ in range(5)] == [0, 1, 2, 3, 0]


def test_a_bias_for_a_token_that_there_is_not_is_refused():
    with pytest.raises(UsageError, match="ids below 300"):
        Sampler(Sampling(logit_bias={300: 1.0}), [], VOCAB)


@pytest.mark.parametrize("count", [0, 5, 20])
def test_log_probabilities_are_the_models_own(count):
    sampling = Sampling(temperature=0.2, top_k=2, logit_bias={1: 50.0}, logprobs=count)
    given = logits()
    sampler = Sampler(sampling, [], VOCAB)
    token = sampler.next(given)
    expected = torch.from_numpy(given).double().log_softmax(-1)
    found = sampler.logprobs(given, token)
    assert found.logprob == pytest.approx(float(expected[token]))
    values, ids = expected.topk(count)
    assert [id_ for id_, _ in found.top] == ids.tolist()
    assert [value for _, value in found.top] == pytest.approx(values.tolist())


def test_tokens_that_are_equally_likely_come_in_the_order_of_their_ids():
    sampler = Sampler(Sampling(logprobs=4), [], VOCAB)
    given = np.zeros(VOCAB, dtype=np.float32)
    given[[9, 200]] = 3.0
    assert [id_ for id_, _ in sampler.logprobs(given, 0).top] == [9, 200, 0, 1]


@pytest.mark.parametrize("temperature", [0.3, 0.6, 1.0, 2.0])
@pytest.mark.parametrize("top_k", [0, 1, 7, VOCAB + 5])
@pytest.mark.parametrize("top_p", [0.01, 0.5, 0.95, 1.0])
@pytest.mark.parametrize("repetition_penalty", [0.8, 1.0, 1.05, 1.5])
def test_probabilities_are_those_of_transformers(temperature, top_k, top_p, repetition_penalty):
    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, repetition_penalty=repetition_penalty)
    seen = [3, 3, 17, 200, 299]
    expected = transformers_probabilities(logits(), seen, sampling)
    sampler = Sampler(sampling, seen, VOCAB)
    assert_same_distribution(probabilities_of(sampler), expected)


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
        ("min_p", 1.5),
        ("presence_penalty", 2.5),
        ("frequency_penalty", float("nan")),
        ("logit_bias", {3: 101.0}),
        ("logit_bias", {-1: 1.0}),
        ("logprobs", 21),
        ("max_reasoning_tokens", -1),
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
