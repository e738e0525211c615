"""Whatever requests come, in whatever order, and whoever goes away: no starvation, no lost or doubled token, every row
freed. On a toy engine, so that thousands of orders take seconds."""

from __future__ import annotations

import random
import threading
import time
from collections import deque
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from r1v_export.errors import R1VError
from r1v_export.generation import Sampling
from r1v_export.processing.pipeline_document import describe_pipeline
from r1v_export.runner.answer import AnswerStream, AnswerText, Timings
from r1v_export.runner.batching.batching_runner import BatchingRunner
from r1v_export.runner.batching.cache_rows import CacheRows
from r1v_export.runner.batching.engine_batch import EngineBatch
from r1v_export.runner.batching.options import BatchingOptions
from r1v_export.runner.batching.speculation import Draft
from r1v_export.runner.encoded_prompt import EncodedPrompt
from r1v_export.runner.engine_runner import EngineRunner
from r1v_export.runner.prompt_encoder import Request
from tests.runner.batching.toy_engine import IMAGE_TOKEN, ToyEngine, answer, next_token
from tests.runner.conftest import byte_tokenizer
from tests.tiny_models import tiny_spec

POSITIONS = 512


@dataclass(frozen=True)
class Arrival:
    """A request.

    Attributes:
        after: steps after the one before it.
        shared: tokens of a beginning that many have in common.
        own: tokens that only it has.
        count: tokens to answer with.
        leaves: steps after which its caller goes away; None stays.
    """

    after: int
    shared: int
    own: tuple[int, ...]
    count: int
    leaves: int | None

    @property
    def prompt(self) -> list[int]:
        return [*([5, 6, 7, 8] * 40)[: self.shared], *self.own, 9]


ARRIVALS = st.lists(
    st.builds(
        Arrival,
        after=st.integers(0, 3),
        shared=st.sampled_from([0, 0, 20, 40, 120]),
        own=st.lists(st.integers(0, 255), max_size=70).map(tuple),
        count=st.integers(1, 90),
        leaves=st.one_of(st.none(), st.integers(0, 40)),
    ),
    min_size=1,
    max_size=12,
)


class Guesses:
    """Steps of random lengths, whose drafts are right as often as asked for.

    Args:
        right: share of the drafts' tokens.
    """

    def __init__(self, seed: int, right: float) -> None:
        self.random, self.right = random.Random(seed), right
        where = "r1v_export.runner.batching"
        self._patches = [
            patch(f"{where}.row_state.draft_of", self.draft_of),
            patch(f"{where}.engine_batch.draft_length", lambda times, drafts, acceptances, most: self._length(most)),
        ]

    def __repr__(self) -> str:
        return f"Guesses(right={self.right})"

    def __enter__(self) -> None:
        for each in self._patches:
            each.start()

    def __exit__(self, *_: object) -> None:
        for each in self._patches:
            each.stop()

    def draft_of(self, held: Sequence[int], last: int, count: int) -> Draft:
        tokens = [*held, last]
        for _ in range(count):
            right = self.random.random() < self.right
            tokens.append(next_token(tokens) if right else self.random.randrange(256))
        return Draft(tokens[len(held) + 1 :])

    def _length(self, most: int) -> int:
        return self.random.randint(0, max(0, most))


def admit(batch: EngineBatch, arrival: Arrival):
    sampling = Sampling(max_new_tokens=arrival.count)
    prompt = EncodedPrompt(arrival.prompt, [], False, Timings())
    text = AnswerText(lambda token: b"x", sampling, False)
    stream = AnswerStream(0, text, frozenset(), arrival.count, prompt.timings, len(arrival.prompt))
    return batch.admit(prompt, sampling, stream)


@settings(max_examples=300, deadline=None)
@given(
    arrivals=ARRIVALS,
    max_rows=st.integers(1, 5),
    budget_bytes=st.sampled_from([320, POSITIONS, 2 * POSITIONS, 5 * POSITIONS, None]),
    keep=st.booleans(),
    chunk=st.sampled_from([1, 7, 32, 512, None]),
    fixed=st.booleans(),
    together=st.sampled_from([0, 1, 20, 256]),
    least=st.sampled_from([1, 8]),
    short_tokens=st.sampled_from([0, 8]),
    guesses=st.one_of(st.none(), st.builds(Guesses, st.integers(0, 99), st.sampled_from([0.0, 0.5, 0.9, 1.0]))),
)
def test_every_answer_is_the_lone_requests_and_every_row_is_freed(
    arrivals, max_rows, budget_bytes, keep, chunk, fixed, together, least, short_tokens, guesses
):
    size = (3, POSITIONS) if fixed else (None, None)
    engine = ToyEngine(*size, together=together, least=least, short_tokens=short_tokens)
    budget_bytes = max(budget_bytes, POSITIONS) if fixed and budget_bytes else budget_bytes
    rows = CacheRows(engine, POSITIONS, max_rows, budget_bytes, keep)
    batch = EngineBatch(engine, IMAGE_TOKEN, rows, chunk, draft_tokens=0 if guesses is None else 8)
    with guesses or nullcontext():
        require_all_answered(arrivals, batch, engine)


def require_all_answered(arrivals: list[Arrival], batch: EngineBatch, engine: ToyEngine) -> None:
    coming, waiting, states = deque(arrivals), deque(), []
    pause, steps, events = coming[0].after, 0, {}
    while coming or waiting or batch.running:
        while coming and pause == 0:
            waiting.append(coming.popleft())
            pause = coming[0].after if coming else 0
        pause = max(0, pause - 1)
        while waiting and (state := admit(batch, waiting[0])):
            states.append((state, waiting.popleft(), steps))
        for state, arrival, since in states:
            if arrival.leaves is not None and steps - since >= arrival.leaves and not state.done:
                batch.end(state, "cancelled")
        taken = batch.step()
        assert batch.draft_tokens or len({id(state) for state, _ in taken}) == len(taken)
        for state, event in taken:
            assert not isinstance(event, R1VError)
            events.setdefault(id(state), []).append(event.token_id)
        usage = batch.cache_usage()
        assert batch.rows.budget_bytes is None or usage.cache_bytes <= batch.rows.budget_bytes
        steps += 1
        # A chunk or a token of somebody in each step, and what was preempted is computed again: all is done in
        # bounded time.
        again = (1 + batch.counters.preempted) * max(len(a.prompt) + a.count for a in arrivals)
        assert steps <= (sum(4 + len(a.prompt) + a.count for a in arrivals) + again) * 2
        # A row grows a few times, and each time takes at most the rows of those that came later.
        assert batch.counters.preempted <= len(arrivals) * batch.rows.max_rows * POSITIONS // 64
    for state, arrival, _ in states:
        whole = answer(arrival.prompt, arrival.count)
        found = state.stream.token_ids
        assert found == events.get(id(state), [])
        assert found == whole[: len(found)]
        assert len(found) == len(whole) or state.stream.finish_reason == "cancelled"
    assert len(states) == len(arrivals)
    assert not any(row.owned for row in batch.rows._rows)
    assert batch.rows.decoding == 0
    assert engine.opened == 1


@pytest.fixture(scope="module")
def toy_runner() -> EngineRunner:
    tokenizer, spec = byte_tokenizer(), tiny_spec(image_token_id=IMAGE_TOKEN, vocab_size=300)
    return EngineRunner(ToyEngine(), tokenizer, describe_pipeline(spec, tokenizer, {}))


@settings(max_examples=25, deadline=None)
@given(
    questions=st.lists(
        st.tuples(st.sampled_from("abc"), st.integers(1, 60), st.integers(1, 120), st.sampled_from([None, 1, 5])),
        min_size=1,
        max_size=24,
    ),
    max_rows=st.integers(1, 6),
)
def test_submitted_requests_of_many_threads_all_end_with_their_own_answer(toy_runner, questions, max_rows):
    batching = BatchingRunner(toy_runner, BatchingOptions(max_rows=max_rows, max_queued=100))
    found: dict[int, list[int]] = {}

    def ask(number: int, letter: str, length: int, count: int, leaves: int | None) -> None:
        request = Request.continuation(letter * length + str(number))
        submission, tokens = batching.submit(request, Sampling(max_new_tokens=count), client=letter), []
        for event in submission:
            if event.token_id is not None:
                tokens.append(event.token_id)
            if len(tokens) == leaves:
                submission.cancel()
        assert submission.result(0).token_ids == tuple(tokens)
        found[number] = tokens

    threads = [threading.Thread(target=ask, args=(number, *question)) for number, question in enumerate(questions)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    stats = batching.stats()
    batching.close()
    for number, (letter, length, count, leaves) in enumerate(questions):
        prompt = toy_runner.tokenizer.encode_text(letter * length + str(number))
        whole = answer(prompt, count)
        stop = next((i + 1 for i, token in enumerate(whole) if token in toy_runner.stop_ids), len(whole))
        whole = whole[:stop]
        assert found[number] == whole[: len(found[number])]
        assert leaves is not None or found[number] == whole
    assert (stats.queued, stats.running) == (0, 0)
    assert sum(stats.finished.values()) == len(questions)
    assert not any(thread.name.startswith("r1v-") for thread in threading.enumerate())


def test_waiting_clients_take_turns(toy_runner):
    """One client's twenty requests do not keep another's single one waiting."""
    ended: list[str] = []
    with BatchingRunner(toy_runner, BatchingOptions(max_rows=1)) as batching:
        first = batching.submit(Request.continuation("first"), Sampling(max_new_tokens=200))
        submissions = []
        for client in ["many"] * 20 + ["one"]:
            request = Request.continuation(client)
            deliver = lambda event, client=client: ended.append(client) if event.answer else None  # noqa: E731
            submissions.append(batching.submit(request, Sampling(max_new_tokens=5), deliver=deliver, client=client))
        for submission in (first, *submissions):
            submission.result(60)
    assert ended.index("one") <= 3


def test_a_waiting_request_is_given_up_while_another_runs(toy_runner):
    with BatchingRunner(toy_runner, BatchingOptions(max_rows=1)) as batching:
        running = batching.submit(Request.continuation("a"), Sampling(max_new_tokens=300))
        cancelled = batching.submit(Request.continuation("b"), Sampling(max_new_tokens=5))
        late = batching.submit(Request.continuation("c"), Sampling(max_new_tokens=5), deadline=time.monotonic())
        cancelled.cancel()
        assert cancelled.result(60).finish_reason == "cancelled"
        assert late.result(60).finish_reason == "deadline"
        assert len(running.result(60).token_ids) > 0
