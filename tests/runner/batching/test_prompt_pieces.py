"""Which tokens of which prompts steps compute, by an engine that notes them."""

from __future__ import annotations

import pytest

from r1v_export.runner.batching.cache_rows import LEAST_PREFIX
from r1v_export.runner.sampling import Sampling
from tests.runner.batching.test_engine_batch import admit, open_batch, tokens
from tests.runner.batching.toy_engine import ToyEngine, answer

ONE = Sampling(max_new_tokens=1)
LONG = Sampling(max_new_tokens=200)


def steps_of(prompts, *, others=0, together=64, least=1, short_tokens=0, chunk=512, keep=False):
    """New tokens of each row that is not decoded, by step, for prompts that come behind others that are decoded."""
    batch = open_batch(
        ToyEngine(together=together, least=least, short_tokens=short_tokens), max_rows=16, chunk=chunk, keep=keep
    )
    for _ in range(others):
        admit(batch, [1], LONG)
    batch.step()
    first = len(batch.rows.cache.decoder.steps) if others else 0
    states = [admit(batch, prompt, ONE) for prompt in prompts]
    while not all(state.done for state in states):
        batch.step()
    assert [tokens(state) for state in states] == [answer(prompt, 1) for prompt in prompts]
    return [step[others:] for step in batch.rows.cache.decoder.steps[first:]]


def different(*lengths):
    """Prompts that begin with different tokens."""
    return [[100 + index, *(token % 90 for token in range(length - 1))] for index, length in enumerate(lengths)]


def test_a_step_has_pieces_of_as_many_prompts_as_go_into_it():
    assert steps_of(different(20, 30, 40)) == [[14, 20, 30], [26]]


def test_a_step_that_decodes_has_as_many():
    assert steps_of(different(70, 80), others=3, together=96) == [[26, 70], [54]]


def test_a_prompt_that_nobody_waits_with_has_the_whole_chunk():
    assert steps_of(different(300), chunk=200) == [[200], [100]]
    assert steps_of(different(300), chunk=None) == [[300]]
    assert steps_of(different(300), others=1, together=128) == [[128], [128], [44]]


def test_no_step_has_more_than_the_chunk():
    assert steps_of(different(20, 30), chunk=16) == [[16], [4, 12], [16], [2]]
    assert steps_of(different(20, 30), others=2, chunk=16) == [[16], [4, 12], [16], [2]]


def test_the_oldest_prompt_and_the_one_with_fewest_tokens_left_come_first_in_turns():
    steps = steps_of(different(100, 90, 8), together=32, chunk=32)
    assert steps == [[32], [8, 24], [32], [12, 20], [32], [32], [6]]


def test_neither_a_piece_nor_what_is_left_has_fewer_tokens_than_the_engine_says():
    # Of the second prompt 24 would fit, and 10 be left; of the third one 6 would fit.
    assert steps_of(different(40, 34, 50), least=16) == [[18, 40], [16, 34], [16]]
    assert steps_of(different(70), others=1, least=16) == [[54], [16]]
    # A whole prompt may have fewer.
    assert steps_of(different(60, 4), least=16) == [[4, 60]]
    assert steps_of(different(60, 8), least=16) == [[60], [8]]


def test_pieces_that_are_computed_alike_lie_together():
    assert steps_of(different(70, 20, 72, 21, 71), others=2, together=256, least=64, short_tokens=96) == [
        [20, 21, 70, 71, 72]
    ]


def test_a_step_that_decodes_has_few_tokens_in_shorter_pieces():
    prompts = different(*[31] * 5, 70)
    assert steps_of(prompts, others=2, together=256, least=64, short_tokens=96) == [[31, 31, 31, 70], [31, 31]]
    assert steps_of(prompts, together=256, least=64, short_tokens=96) == [[31, 31, 31, 31, 31, 70]]
    # One has room however long it is: here the shortest is the first in turn.
    assert steps_of(different(31, 20), others=2, together=256, least=64, short_tokens=8) == [[20], [31]]


def test_pieces_are_as_short_as_a_given_chunk_however_many_tokens_the_engine_says():
    assert steps_of(different(70), least=16, chunk=20) == [[20], [20], [20], [10]]


def test_a_prompt_does_not_wait_for_what_it_could_not_copy():
    """Of a row's tokens a prompt copies all but its own last one, whose logits are wanted."""
    alike = [*range(LEAST_PREFIX)]
    assert steps_of([alike, alike], keep=True) == [[LEAST_PREFIX, LEAST_PREFIX]]
    assert steps_of([[*alike, 99], [*alike, 99]], keep=True) == [[LEAST_PREFIX + 1], [1]]


@pytest.mark.parametrize(("keep", "steps"), [(True, [[30], [10]]), (False, [[30, 30]])])
def test_what_two_prompts_begin_with_is_computed_once(keep, steps):
    alike = [*range(LEAST_PREFIX + 4)]
    assert steps_of([[*alike, *range(100, 110)], [*alike, *range(200, 210)]], keep=keep) == steps


def test_prompts_that_have_little_in_common_are_computed_together():
    alike = [*range(LEAST_PREFIX - 1)]
    assert steps_of([[*alike, *range(100, 110)], [*alike, *range(200, 210)]], keep=True) == [[25, 25]]


def test_where_rows_go_one_by_one_others_are_decoded_behind_every_chunk():
    batch = open_batch(ToyEngine(), chunk=16)
    first = admit(batch, [1], LONG)
    batch.step()
    states = [admit(batch, prompt, ONE) for prompt in different(20, 30)]
    decoded_before = []
    while not all(state.done for state in states):
        before = len(tokens(first))
        batch.step()
        decoded_before.append(len(tokens(first)) > before)
    assert decoded_before == [True, False] * 4, "16, 4, 16 and 14 tokens"
