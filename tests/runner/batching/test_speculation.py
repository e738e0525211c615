"""Drafts from a sequence's own tokens, how long they are, and that no answer is another one with them."""

from __future__ import annotations

import random
from array import array
from dataclasses import replace
from pathlib import Path

import pytest

from r1v_export.generation import Guide, Sampling
from r1v_export.runner.answer import AnswerStream, AnswerText, Timings
from r1v_export.runner.batching import engine_batch, row_state
from r1v_export.runner.batching.cache_rows import CacheRows
from r1v_export.runner.batching.engine_batch import EngineBatch
from r1v_export.runner.batching.speculation import Acceptance, Draft, StepTimes, draft_length, draft_of
from r1v_export.runner.encoded_prompt import EncodedPrompt
from r1v_export.runner.open_runner import open_runner
from r1v_export.runner.prompt_encoder import Request
from tests.runner.conftest import IMAGE_TOKEN


def draft(tokens: list[int], count: int = 4) -> tuple[list[int], int]:
    found = draft_of(array("q", tokens[:-1]), tokens[-1], count)
    return found.token_ids, found.matched


def test_a_draft_is_what_followed_the_same_tokens():
    assert draft([1, 2, 3, 4, 5, 6, 7, 9, 1, 2]) == ([3, 4, 5, 6], 2)
    assert draft([1, 2, 3, 4, 5, 6, 7, 9, 1, 2], count=1) == ([3], 2)


def test_the_longest_match_is_taken_and_of_equal_ones_the_latest():
    longest_first = [8, 1, 2, 50, 51, 7, 1, 2, 60, 61, 8, 1, 2]
    assert draft(longest_first) == ([50, 51, 7, 1], 3)
    assert draft([1, 2, 50, 9, 1, 2, 60, 61, 1, 2])[0][:2] == [60, 61]


def test_a_draft_goes_on_with_itself_where_the_sequence_ends():
    assert draft([7, 7, 7], count=5) == ([7] * 5, 2)
    assert draft([1, 2, 3, 1, 2, 3, 1, 2], count=8)[0] == [3, 1, 2, 3, 1, 2, 3, 1]


@pytest.mark.parametrize("tokens", [[1], [1, 2], [1, 2, 3, 4, 5], [1, 2, 3, 2, 1, 3]])
def test_tokens_that_do_not_repeat_have_no_draft(tokens: list[int]):
    assert draft(tokens) == ([], 2)


def test_no_tokens_are_no_draft():
    assert draft([7, 7, 7, 7], count=0) == ([], 2)


def measured(step_ms: dict[int, float], rows: int = 1) -> StepTimes:
    """Times of steps with so many tokens of each row."""
    times = StepTimes()
    for seq, each in step_ms.items():
        for _ in range(3):
            times.record(rows, seq, each)
    return times


def taught(right: bool, draft: Draft, steps: int = 60) -> Acceptance:
    acceptance = Acceptance()
    for _ in range(steps):
        acceptance.learn(draft, draft.token_ids if right else [-1])
    return acceptance


EIGHT = Draft([1, 2, 3, 4, 5, 6, 7, 8])


def test_right_drafts_are_expected_to_be_right_and_wrong_ones_wrong():
    assert Acceptance().expected_tokens(Draft(), 8) == 1
    assert taught(True, EIGHT).expected_tokens(EIGHT, 8) == pytest.approx(9, rel=0.02)
    assert taught(True, EIGHT).expected_tokens(EIGHT, 2) == pytest.approx(3, rel=0.02)
    assert taught(False, EIGHT).expected_tokens(EIGHT, 8) == pytest.approx(1, abs=0.01)


def test_right_drafts_make_steps_as_long_as_they_are_worth_it():
    right = [taught(True, EIGHT)]
    cheap = measured({1: 10, 2: 10, 3: 10, 5: 11, 9: 12})
    assert draft_length(cheap, [EIGHT], right, most=8) == 8
    assert draft_length(cheap, [EIGHT], right, most=3) == 2
    assert draft_length(cheap, [Draft([1, 2])], right, most=8) == 2
    assert draft_length(measured({1: 10, 2: 10, 3: 10, 5: 11, 9: 90}), [EIGHT], right, most=8) == 4
    assert draft_length(measured({1: 10, 2: 20, 3: 30, 5: 50, 9: 90}), [EIGHT], right, most=8) == 0


def test_wrong_drafts_make_no_step_longer_whatever_it_takes():
    wrong = [taught(False, EIGHT)]
    assert draft_length(measured({1: 10, 2: 10, 3: 10, 5: 10, 9: 10}), [EIGHT], wrong, most=8) == 0


def test_the_rows_of_a_step_decide_together():
    times = measured({1: 10, 2: 15, 3: 15, 5: 15, 9: 15}, rows=4)
    right, wrong = taught(True, EIGHT), taught(False, EIGHT)
    assert draft_length(times, [EIGHT, EIGHT, EIGHT, EIGHT], [right, right, right, wrong], most=8) == 8
    assert draft_length(times, [EIGHT, Draft(), Draft(), Draft()], [wrong, right, right, right], most=8) == 0


def test_a_step_that_was_not_measured_is_tried_and_forgotten_times_are_measured_again():
    right = [taught(True, EIGHT)]
    assert draft_length(StepTimes(), [EIGHT], right, most=8) == 0
    times = measured({1: 10})
    assert draft_length(times, [EIGHT], right, most=8) == 8
    for _ in range(2):
        times.record(1, 9, 200)
    assert draft_length(times, [EIGHT], right, most=8) == 4
    for _ in range(600):
        times.record(1, 1, 10)
    assert draft_length(times, [EIGHT], right, most=8) == 8


@pytest.mark.parametrize("vocabulary", [2, 30, 1000])
@pytest.mark.parametrize("slower", [1.1, 2.0])
def test_random_text_takes_at_most_two_percent_longer(vocabulary: int, slower: float):
    chance = random.Random(vocabulary)
    held, last, acceptance, times = array("q"), 0, Acceptance(), StepTimes()
    spent, tokens = 0.0, 0
    while tokens < 2000:
        found = draft_of(held, last, 8)
        length = draft_length(times, [found], [acceptance], 8)
        step = 10.0 if length == 0 else 10.0 * slower
        times.record(1, 1 + length, step)
        chosen = []
        for guess in [*found.token_ids[:length], None]:
            chosen.append(chance.randrange(vocabulary))
            if chosen[-1] != guess:
                break
        acceptance.learn(found, chosen)
        held.extend([last, *chosen[:-1]])
        last, spent, tokens = chosen[-1], spent + step, tokens + len(chosen)
    assert spent <= 1.02 * 10.0 * tokens


PROMPTS = [[7, 8, 9] * 6, list(range(20, 60)), [100, 101] * 4, [*range(200, 217)] * 2]
SAMPLINGS = [
    Sampling(max_new_tokens=60),
    Sampling(max_new_tokens=60, temperature=0.7, seed=3, logprobs=2),
    Sampling(max_new_tokens=60, temperature=0.2, top_k=3, seed=4),
    Sampling(max_new_tokens=60, frequency_penalty=0.2, repetition_penalty=1.05, logit_bias={5: 1.0}),
    Sampling(max_new_tokens=60, max_reasoning_tokens=20),
]


def longest(times, drafts, acceptances, most: int) -> int:
    """In place of `draft_length`: every draft is checked, whatever this machine is busy with."""
    return max(0, most)


def answers(engine, sampling: Sampling, draft_tokens: int) -> tuple[list[AnswerStream], EngineBatch]:
    """Of all prompts together."""
    rows = CacheRows(engine, 1024, max_rows=len(PROMPTS))
    batch = EngineBatch(engine, IMAGE_TOKEN, rows, end_tag=[11, 12], draft_tokens=draft_tokens)
    streams = []
    for prompt in PROMPTS:
        encoded = EncodedPrompt(prompt, [], True, Timings())
        text = AnswerText(lambda token: b"</think>" if token == 12 else b"x", sampling, True)
        stream = AnswerStream(0, text, frozenset({3}), sampling.max_new_tokens, encoded.timings, len(prompt))
        assert batch.admit(encoded, sampling, stream)
        streams.append(stream)
    while batch.running:
        batch.step()
    return streams, batch


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=str)
def test_answers_and_log_probabilities_are_those_of_one_token_at_a_time(engine, sampling, monkeypatch):
    expected, plain = answers(engine, sampling, draft_tokens=0)
    assert plain.counters.draft_tokens == 0
    whole = [[*prompt, *stream.token_ids] for prompt, stream in zip(PROMPTS, expected, strict=True)]

    def mostly_right(held: array[int], last: int, count: int) -> Draft:
        begun = [*held, last]
        following = next(tokens for tokens in whole if tokens[: len(begun)] == begun)[len(begun) :][:count]
        return Draft([token if (len(begun) + i) % 5 else 299 - token for i, token in enumerate(following)])

    monkeypatch.setattr(row_state, "draft_of", mostly_right)
    monkeypatch.setattr(engine_batch, "draft_length", longest)
    found, batch = answers(engine, sampling, draft_tokens=8)
    assert [stream.token_ids for stream in found] == [stream.token_ids for stream in expected]
    assert [stream.reasoning_tokens for stream in found] == [stream.reasoning_tokens for stream in expected]
    for ours, theirs in zip(found, expected, strict=True):
        assert [each.logprob for each in ours.logprobs] == pytest.approx(
            [each.logprob for each in theirs.logprobs], abs=1e-4
        )
    assert 0 < batch.counters.accepted_tokens < batch.counters.draft_tokens
    assert sum(batch.counters.rows_per_step.values()) < sum(plain.counters.rows_per_step.values()) / 2


def test_an_engine_with_one_logit_a_row_has_no_drafts(engine, monkeypatch):
    limits = engine.cache_limits()
    monkeypatch.setattr(engine, "cache_limits", lambda: replace(limits, logit_positions=1))
    monkeypatch.setattr(engine_batch, "draft_length", longest)
    _, batch = answers(engine, SAMPLINGS[0], draft_tokens=8)
    assert batch.counters.draft_tokens == 0


def test_nano_answers_alike_with_drafts_also_in_a_form_and_at_random(nano_bundle: Path, monkeypatch):
    monkeypatch.setattr(engine_batch, "draft_length", longest)
    requests = [Request.ask("Count: one two three one two three"), Request.ask("What is there?")]
    samplings = [
        Sampling(max_new_tokens=120, ignore_eos=True),
        Sampling(max_new_tokens=120, ignore_eos=True, temperature=0.8, top_p=0.95, seed=1),
        Sampling(max_new_tokens=60, max_reasoning_tokens=20, guide=Guide.regex("(red|blue), (red|blue), (red|blue)")),
    ]
    runner = open_runner(nano_bundle)
    for sampling in samplings:
        found = {}
        for runner.draft_tokens in (0, 8):
            found[runner.draft_tokens] = [answer.token_ids for answer in runner.answers(requests, sampling)]
        assert found[0] == found[8]
