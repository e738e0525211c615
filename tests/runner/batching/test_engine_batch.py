"""Continuous batching on the reference: whatever comes when, every answer is that of the plain model."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch

from r1v_export.errors import GraphError, InputError, R1VError
from r1v_export.generation import EncodedImage
from r1v_export.reference.language import CacheStep, rotary_tables
from r1v_export.runner.answer import AnswerStream, AnswerText, Timings
from r1v_export.runner.batching.cache_rows import LEAST_PREFIX, CacheRows
from r1v_export.runner.batching.engine_batch import EngineBatch
from r1v_export.runner.encoded_prompt import EncodedPrompt
from r1v_export.runner.kv_cache import embed_chosen
from r1v_export.runner.sampling import Sampling
from tests.runner.batching.toy_engine import ToyEngine
from tests.runner.batching.toy_engine import answer as toy_answer
from tests.runner.conftest import IMAGE_TOKEN

NO_STOP: frozenset[int] = frozenset()
PROMPTS = [[7, 8, 9], list(range(20, 60)), [100], list(range(200, 217))]
TWELVE = Sampling(max_new_tokens=12)


def open_batch(engine, max_rows=4, budget_bytes=None, keep=False, chunk=512) -> EngineBatch:
    rows = CacheRows(engine, 1024, max_rows, budget_bytes, keep)
    return EngineBatch(engine, IMAGE_TOKEN, rows, chunk)


def admit(batch, prompt, sampling=TWELVE, stop_ids=NO_STOP, images=()):
    """The state of a request for a prompt of plain tokens, None where there is no room."""
    encoded = EncodedPrompt([*prompt], [*images], False, Timings())
    text = AnswerText(lambda token: b"x", sampling, False)
    stream = AnswerStream(0, text, stop_ids, sampling.max_new_tokens, encoded.timings, len(prompt))
    return batch.admit(encoded, sampling, stream)


def run(batch) -> None:
    while batch.running:
        for _, event in batch.step():
            if isinstance(event, R1VError):
                raise event


def tokens(state) -> list[int]:
    return state.stream.token_ids


def alone(engine, prompt, sampling=TWELVE) -> list[int]:
    batch = open_batch(engine)
    state = admit(batch, prompt, sampling)
    run(batch)
    return tokens(state)


def greedy_without_cache(engine, prompt, count, image_NE=None):
    """The plain way: the whole text through the model again for each token."""
    language_model = engine.model.language_model
    none_NE = np.zeros((0, engine.sizes.hidden), np.float32)
    embeds = engine.embed(np.array([prompt]), none_NE if image_NE is None else image_NE)
    generated: list[int] = []
    for _ in range(count):
        step = CacheStep(torch.arange(embeds.shape[1])[None], None, None)
        logits, _ = language_model(torch.from_numpy(embeds), rotary_tables(language_model.spec, 256), step, None)
        generated.append(int(logits[0, -1].argmax()))
        embeds = np.concatenate([embeds, embed_chosen(engine, np.array([generated[-1:]]))], axis=1)
    return generated


def test_requests_of_different_lengths_get_what_they_get_alone(engine):
    batch = open_batch(engine)
    states = [admit(batch, prompt) for prompt in PROMPTS]
    run(batch)
    for prompt, state in zip(PROMPTS, states, strict=True):
        assert tokens(state) == greedy_without_cache(engine, prompt, 12)
        assert state.stream.finish_reason == "length"
    assert len({tuple(tokens(state)) for state in states}) == len(states)


def test_requests_join_and_leave_between_steps(engine):
    batch = open_batch(engine, max_rows=3)
    waiting = [(prompt, Sampling(max_new_tokens=n)) for prompt, n in zip(PROMPTS * 3, range(3, 15), strict=True)]
    expected = [greedy_without_cache(engine, prompt, sampling.max_new_tokens) for prompt, sampling in waiting]
    states, most = [], 0
    while waiting or batch.running:
        if waiting and (state := admit(batch, *waiting[0])):
            states.append(state)
            waiting.pop(0)
        most = max(most, len(batch.running))
        batch.step()
    assert [tokens(state) for state in states] == expected
    assert most == 3
    assert batch.counters.rows_per_step[3] > 0


def test_a_long_prompt_stops_the_others_for_no_more_than_a_chunk(engine):
    batch = open_batch(engine, chunk=8)
    short = admit(batch, PROMPTS[0])
    batch.step()
    long = admit(batch, PROMPTS[1])
    prefilled = {}
    while not tokens(long):
        batch.step()
        prefilled.setdefault(len(tokens(short)), set()).add(len(long.row.tokens))
    assert len(prefilled) >= len(PROMPTS[1]) // 8
    assert all(max(held) - min(held) <= 8 for held in prefilled.values())
    run(batch)
    assert tokens(long) == greedy_without_cache(engine, PROMPTS[1], 12)
    assert tokens(short) == greedy_without_cache(engine, PROMPTS[0], 12)


def test_a_first_token_is_handed_out_before_the_next_prompt_is_prefilled(engine):
    batch = open_batch(engine)
    states = [admit(batch, prompt) for prompt in PROMPTS]
    for count in range(1, 5):
        assert len(batch.step()) == 1
        assert sum(map(len, map(tokens, states))) == count
    assert len(batch.step()) == 4


def test_prompts_take_turns(engine):
    batch = open_batch(engine, chunk=8)
    long, short = admit(batch, PROMPTS[1]), admit(batch, PROMPTS[0])
    batch.step()
    batch.step()
    assert (len(tokens(long)), len(tokens(short))) == (0, 1)


def test_sampled_answers_do_not_depend_on_their_neighbors(engine):
    sampling = Sampling(max_new_tokens=12, temperature=1.3, top_p=0.9, seed=11, repetition_penalty=1.1)
    expected = alone(engine, PROMPTS[1], sampling)
    batch = open_batch(engine)
    states = [admit(batch, prompt, sampling) for prompt in PROMPTS]
    run(batch)
    assert tokens(states[1]) == expected


def test_answers_end_by_themselves_at_a_stop_token_or_their_length(engine):
    expected = greedy_without_cache(engine, PROMPTS[0], 12)
    batch = open_batch(engine)
    states = [
        admit(batch, PROMPTS[0], stop_ids=frozenset({expected[4]})),
        admit(batch, PROMPTS[0], Sampling(max_new_tokens=7)),
        admit(batch, PROMPTS[0]),
    ]
    run(batch)
    assert tokens(states[0]) == expected[: expected.index(expected[4]) + 1]
    assert (tokens(states[1]), tokens(states[2])) == (expected[:7], expected)
    assert [state.stream.finish_reason for state in states] == ["stop", "length", "length"]


def test_an_answer_that_is_ended_frees_its_row_at_once(engine):
    batch = open_batch(engine, max_rows=2)
    states = [admit(batch, PROMPTS[0]), admit(batch, PROMPTS[1])]
    while len(tokens(states[0])) < 5:
        batch.step()
    assert admit(batch, PROMPTS[2]) is None
    event = batch.end(states[0], "cancelled")
    assert (event.answer.finish_reason, len(event.answer.token_ids)) == ("cancelled", 5)
    third = admit(batch, PROMPTS[2])
    run(batch)
    assert tokens(states[0]) == greedy_without_cache(engine, PROMPTS[0], 5)
    assert tokens(states[1]) == greedy_without_cache(engine, PROMPTS[1], 12)
    assert tokens(third) == greedy_without_cache(engine, PROMPTS[2], 12)


def slots(engine, rows: int, capacity: int) -> int:
    return rows * capacity * engine.cache_limits().slot_bytes


def test_the_cache_never_grows_beyond_its_budget(engine):
    budget = slots(engine, 4, 64)
    batch = open_batch(engine, max_rows=8, budget_bytes=budget)
    waiting = [([9] * length, Sampling(max_new_tokens=8)) for length in (10, 20, 30, 40, 100, 10, 56, 12, 200, 9, 30)]
    expected = [greedy_without_cache(engine, prompt, 8) for prompt, _ in waiting]
    states, most = [], 0
    while waiting or batch.running:
        while waiting and (state := admit(batch, *waiting[0])):
            states.append(state)
            waiting.pop(0)
        assert batch.cache_usage().cache_bytes <= budget
        most = max(most, len(batch.running))
        batch.step()
    assert most == 4
    assert [tokens(state) for state in states] == expected


def test_a_prompt_beyond_the_whole_budget_is_refused(engine):
    batch = open_batch(engine, budget_bytes=slots(engine, 1, 64))
    with pytest.raises(InputError, match="too long for the key-value cache"):
        admit(batch, [9] * 64)
    assert admit(batch, [9] * 63) is not None


def test_an_answer_ends_where_the_budget_of_the_cache_does(engine):
    batch = open_batch(engine, budget_bytes=slots(engine, 1, 64))
    state = admit(batch, [9] * 60)
    run(batch)
    assert tokens(state) == greedy_without_cache(engine, [9] * 60, 4)
    assert state.stream.finish_reason == "context"


def test_what_an_answer_may_come_to_costs_no_other_its_row(engine):
    endless = Sampling(max_new_tokens=10**9)
    batch = open_batch(engine, budget_bytes=slots(engine, 4, 128))
    states = [admit(batch, prompt, endless) for prompt in PROMPTS]
    assert None not in states
    for _ in range(10):
        batch.step()
    assert batch.counters.rows_per_step[4] > 0
    for prompt, state in zip(PROMPTS, states, strict=True):
        batch.end(state, "cancelled")
        assert tokens(state) == greedy_without_cache(engine, prompt, len(tokens(state)))
    assert batch.counters.preempted == 0


@pytest.mark.parametrize("keep", [False, True])
def test_a_request_that_gives_up_its_row_goes_on_as_if_it_had_not(engine, keep):
    """The image is needed again, and what the answer has of image tokens are none of its."""
    sampling = Sampling(max_new_tokens=120, temperature=1.3, seed=11, logit_bias={IMAGE_TOKEN: 4})
    shown = image(engine, 0)
    prompts = [(PROMPTS[1], ()), ([*range(20, 40), *[IMAGE_TOKEN] * 8, *range(40, 50)], (shown,))]
    expected = []
    for prompt, images in prompts:
        batch = open_batch(engine)
        expected.append(admit(batch, prompt, sampling, images=images))
        run(batch)
    batch = open_batch(engine, budget_bytes=slots(engine, 2, 128), keep=keep)
    states = [admit(batch, prompt, sampling, images=images) for prompt, images in prompts]
    for _ in range(100):
        batch.step()
    assert batch.counters.preempted == 1
    assert admit(batch, PROMPTS[0]) is None, "a new request goes before one that gave up its row"
    run(batch)
    assert [tokens(state) for state in states] == [tokens(state) for state in expected]
    assert all(len(tokens(state)) == 120 for state in states)
    assert IMAGE_TOKEN in tokens(states[1])[:80]
    assert [state.stream.reused_tokens for state in states] == [0, 20 if keep else 0]


def test_a_request_starts_behind_what_a_finished_one_left(engine):
    batch = open_batch(engine, keep=True)
    first = admit(batch, PROMPTS[1])
    run(batch)
    longer = [*PROMPTS[1], *tokens(first), *PROMPTS[3]]
    second = admit(batch, longer)
    run(batch)
    assert tokens(second) == greedy_without_cache(engine, longer, 12)
    assert batch.cache_usage().rows == 1
    # The last token of an answer is chosen, but not fed to the decoder.
    assert second.stream.reused_tokens == len(PROMPTS[1]) + 11
    assert (batch.counters.prefix_hits, batch.counters.prefix_misses) == (1, 1)


def test_requests_that_run_share_their_beginning_too(engine):
    prompt = [*PROMPTS[1], *PROMPTS[3]]
    batch = open_batch(engine, keep=True, chunk=16)
    states = [admit(batch, prompt, Sampling(max_new_tokens=12, temperature=1.0, seed=seed)) for seed in range(3)]
    run(batch)
    for seed, state in enumerate(states):
        assert tokens(state) == alone(engine, prompt, Sampling(max_new_tokens=12, temperature=1.0, seed=seed))
    computed = sum(len(prompt) - state.stream.reused_tokens for state in states)
    # Fewer tokens than are worth a copy are computed by each.
    assert computed < len(prompt) + 2 * LEAST_PREFIX


def test_a_shared_beginning_does_not_cost_the_row_that_has_it(engine):
    batch = open_batch(engine, max_rows=4, keep=True)
    conversation = [*PROMPTS[1], *PROMPTS[3], *PROMPTS[3]]
    admit(batch, conversation)
    run(batch)
    other = admit(batch, [*PROMPTS[1][:30], 1, 2, 3])
    run(batch)
    assert other.stream.reused_tokens == 30
    again = admit(batch, [*conversation, 4])
    run(batch)
    assert again.stream.reused_tokens == len(conversation)


def image(engine, seed: int) -> EncodedImage:
    embeds = np.random.default_rng(seed).standard_normal((8, engine.sizes.hidden)).astype(np.float32)
    return EncodedImage(embeds, hashlib.sha256(embeds.tobytes()).digest())


def test_another_image_in_the_same_place_is_not_taken_from_the_cache(engine):
    prompt = [*range(20, 40), *[IMAGE_TOKEN] * 8, *range(40, 50)]
    batch = open_batch(engine, keep=True, chunk=25)
    reused = []
    for seed in (0, 1, 0):
        shown = image(engine, seed)
        state = admit(batch, prompt, images=[shown])
        run(batch)
        assert tokens(state) == greedy_without_cache(engine, prompt, 12, shown.embeds)
        reused.append(state.stream.reused_tokens)
    assert reused == [0, 20, len(prompt) - 1]


def test_image_tokens_without_an_embedding_are_refused(engine):
    with pytest.raises(InputError, match="do not match"):
        admit(open_batch(engine), [1, IMAGE_TOKEN])


def test_a_prompt_that_fails_leaves_the_others_alone(engine, monkeypatch):
    batch = open_batch(engine)
    good, bad = admit(batch, PROMPTS[0]), admit(batch, PROMPTS[1])
    real = engine.embed

    def broken(ids, images):
        embeds = real(ids, images)
        if ids.shape[1] == len(PROMPTS[1]):
            embeds[0, 3, 3] = np.nan
        return embeds

    monkeypatch.setattr(engine, "embed", broken)
    errors = []
    while batch.running:
        errors += [(state, event) for state, event in batch.step() if isinstance(event, R1VError)]
    ((state, error),) = errors
    assert state is bad
    assert isinstance(error, GraphError)
    assert tokens(good) == greedy_without_cache(engine, PROMPTS[0], 12)


def test_a_step_that_fails_is_an_error_of_every_request_in_it_and_of_no_later_one(engine, monkeypatch):
    batch = open_batch(engine)
    states = [admit(batch, prompt) for prompt in PROMPTS[:2]]
    for _ in states:
        batch.step()

    def failing(*_: object) -> None:
        raise GraphError("No memory.")

    with monkeypatch.context() as patched:
        patched.setattr(batch.rows.cache.decoder, "step", failing)
        failed = {id(state) for state, event in batch.step() if isinstance(event, GraphError)}
    assert failed == {id(state) for state in states}
    assert not batch.running
    later = admit(batch, PROMPTS[1])
    run(batch)
    assert tokens(later) == greedy_without_cache(engine, PROMPTS[1], 12)


def test_rows_of_different_lengths_go_together_where_the_decoder_takes_them():
    batch = open_batch(ToyEngine(together=16), chunk=16)
    first, second = admit(batch, range(20)), admit(batch, range(50, 90))
    run(batch)
    assert [tokens(first), tokens(second)] == [toy_answer(range(20), 12), toy_answer(range(50, 90), 12)]
    steps = batch.rows.cache.decoder.steps
    # The oldest prompt, the one with fewest tokens left and a part of the other one, and what is left of that.
    assert steps[:5] == [[16], [4, 12], [1, 16], [1, 12], [1, 1]]
    assert sum(map(sum, steps)) == 20 + 40 + 2 * 11, "no padding, and no last token a second time"
    assert batch.counters.prompt_tokens == 60


def test_prompts_that_end_in_one_step_are_decoded_from_the_next_one_on():
    batch = open_batch(ToyEngine(together=64))
    prompts = [range(20), range(50, 60), range(70, 90)]
    states = [admit(batch, prompt) for prompt in prompts]
    assert [state for state, _ in batch.step()] == [states[1], states[0], states[2]]
    run(batch)
    assert [tokens(state) for state in states] == [toy_answer(prompt, 12) for prompt in prompts]
    assert batch.rows.cache.decoder.steps[:2] == [[10, 20, 20], [1, 1, 1]]


def test_a_step_with_a_chunk_that_fails_fails_for_all_in_it(monkeypatch):
    batch = open_batch(ToyEngine(together=16), chunk=16)
    first, second = admit(batch, range(8)), admit(batch, range(50, 90))
    batch.step()
    assert first.prefilled

    def failing(*_: object) -> None:
        raise GraphError("No memory.")

    with monkeypatch.context() as patched:
        patched.setattr(batch.rows.cache.decoder, "step", failing)
        failed = {id(state) for state, event in batch.step() if isinstance(event, GraphError)}
    assert failed == {id(first), id(second)}
    assert not batch.running
    later = admit(batch, PROMPTS[1])
    run(batch)
    assert tokens(later) == toy_answer(PROMPTS[1], 12)


def test_one_of_several_chunks_that_cannot_be_embedded_fails_alone(monkeypatch):
    batch = open_batch(ToyEngine(together=64))
    prompts = [range(10), range(50, 70), range(80, 110)]
    states = [admit(batch, prompt) for prompt in prompts]
    embed_piece = batch._embed_piece

    def failing(piece):
        if piece.state is states[1]:
            raise GraphError("No memory.")
        return embed_piece(piece)

    monkeypatch.setattr(batch, "_embed_piece", failing)
    events = batch.step()
    assert [state for state, _ in events] == [states[1], states[0], states[2]]
    assert isinstance(events[0][1], GraphError)
    run(batch)
    assert batch.rows.cache.decoder.steps[0] == [10, 30]
    for index in (0, 2):
        assert tokens(states[index]) == toy_answer(prompts[index], 12)


def test_a_chunk_that_cannot_be_embedded_fails_alone(monkeypatch):
    batch = open_batch(ToyEngine(together=16), chunk=16)
    first, second = admit(batch, range(8)), admit(batch, range(50, 90))
    batch.step()

    def failing(*_: object) -> None:
        raise GraphError("No memory.")

    with monkeypatch.context() as patched:
        patched.setattr(batch, "_embed_piece", failing)
        events = batch.step()
    assert [state for state, _ in events] == [second, first]
    assert isinstance(events[0][1], GraphError)
    run(batch)
    assert tokens(first) == toy_answer(range(8), 12)
