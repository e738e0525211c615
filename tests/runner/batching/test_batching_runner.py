"""The interface that servers build on: events, errors, cancelling, deadlines, the bounded queue, closing."""

from __future__ import annotations

import threading
import time

import pytest

from r1v_export.errors import InputError, QueueFullError, R1VError, UsageError
from r1v_export.generation import Guide
from r1v_export.runner.answer import TokenEvent
from r1v_export.runner.batching.batching_runner import BatchingRunner
from r1v_export.runner.batching.options import BatchingOptions
from r1v_export.runner.prompt_encoder import Request
from r1v_export.runner.sampling import Sampling
from tests.runner.test_engine_runner import REQUESTS, image

SHORT = Sampling(max_new_tokens=12)
LONG = Sampling(max_new_tokens=400)


@pytest.fixture
def batching(runner):
    with BatchingRunner(runner) as opened:
        yield opened


def test_submitted_requests_get_the_answers_they_get_alone(runner):
    expected = [answer.token_ids for answer in runner.answers(REQUESTS, SHORT)]
    with BatchingRunner(runner) as batching:
        submissions = [batching.submit(request, SHORT) for request in REQUESTS]
        assert [submission.result(60).token_ids for submission in submissions] == expected


def test_tiles_of_concurrent_requests_go_through_the_vision_graph_together(runner, monkeypatch):
    requests = [Request.ask("What is it?", image(28, 28, seed)) for seed in range(4)]
    expected = [answer.token_ids for answer in runner.answers(requests, SHORT)]
    submitted, vision = threading.Event(), runner.vision.vision
    monkeypatch.setattr(runner.vision, "vision", lambda pixels: submitted.wait(60) and vision(pixels))
    with BatchingRunner(runner) as batching:
        submissions = [batching.submit(request, SHORT) for request in requests]
        submitted.set()
        assert [submission.result(60).token_ids for submission in submissions] == expected
        runs = batching.stats().tiles_per_vision_batch
    assert sum(tiles * count for tiles, count in runs.items()) == 4
    assert sum(runs.values()) <= 2, "the first may have begun before the others came"


def test_iterating_gives_the_events_that_add_up_to_the_answer(batching):
    submission = batching.submit(REQUESTS[2], SHORT)
    events = list(submission)
    answer = submission.result()
    assert events[-1].answer == answer
    assert tuple(event.token_id for event in events) == answer.token_ids
    assert "".join(event.text for event in events) == answer.text


def test_deliver_takes_the_events_on_another_thread(batching):
    delivered, threads = [], set()

    def deliver(event: TokenEvent | R1VError) -> None:
        delivered.append(event)
        threads.add(threading.current_thread())

    submission = batching.submit(REQUESTS[0], SHORT, deliver=deliver)
    assert submission.result(60) == delivered[-1].answer
    assert threading.current_thread() not in threads
    with pytest.raises(UsageError, match="deliver"):
        next(iter(submission))


def test_an_unusable_request_fails_alone(batching):
    delivered = []
    bad = batching.submit(Request.ask("word " * 300), SHORT, deliver=delivered.append)
    good = batching.submit(REQUESTS[2], SHORT)
    with pytest.raises(InputError, match="fewer than 1024"):
        bad.result(60)
    assert isinstance(delivered[-1], InputError)
    assert good.result(60).finish_reason == "length"
    assert batching.stats().errors == {"InputError": 1}


def test_cancelling_ends_an_answer_with_what_it_has(batching):
    submission = batching.submit(REQUESTS[2], LONG)
    events = []
    for event in submission:
        events.append(event)
        if len(events) == 3:
            submission.cancel()
    answer = submission.result()
    assert answer.finish_reason == "cancelled"
    assert 3 <= len(answer.token_ids) < 400
    submission.cancel()


def test_a_deadline_ends_an_answer_with_what_it_has(batching):
    passed = batching.submit(REQUESTS[2], LONG, deadline=time.monotonic() + 0.05)
    answer = passed.result(60)
    assert answer.finish_reason == "deadline"
    assert len(answer.token_ids) < 400


def test_a_full_queue_refuses_instead_of_growing(runner):
    with BatchingRunner(runner, BatchingOptions(max_rows=1, max_queued=2)) as batching:
        first = batching.submit(REQUESTS[2], LONG)
        next(iter(first))
        waiting = [batching.submit(REQUESTS[2], SHORT) for _ in range(2)]
        with pytest.raises(QueueFullError, match="at most 2"):
            batching.submit(REQUESTS[2], SHORT)
        assert batching.stats().refused == 1
        first.cancel()
        assert [submission.result(60).finish_reason for submission in waiting] == ["length"] * 2


def test_a_deliver_that_raises_cancels_its_own_request_only(batching):
    def deliver(event: object) -> None:
        raise ConnectionError("gone")

    broken = batching.submit(REQUESTS[2], LONG, deliver=deliver)
    good = batching.submit(REQUESTS[2], SHORT)
    assert broken.result(60).finish_reason == "cancelled"
    assert good.result(60).finish_reason == "length"


def test_closing_drains_or_cancels_and_refuses_what_comes_later(runner):
    for drain, reason in ((True, "length"), (False, "cancelled")):
        batching = BatchingRunner(runner)
        submissions = [batching.submit(REQUESTS[2], Sampling(max_new_tokens=60)) for _ in range(3)]
        batching.close(drain=drain)
        assert {submission.result(0).finish_reason for submission in submissions} == {reason}
        with pytest.raises(UsageError, match="closed"):
            batching.submit(REQUESTS[2], SHORT)


def test_stats_count_answers_and_tokens(batching):
    answers = [batching.submit(request, SHORT).result(60) for request in REQUESTS]
    stats = batching.stats()
    assert stats.finished == {"length": 3}
    assert stats.prompt_tokens == sum(answer.prompt_tokens for answer in answers)
    assert stats.generated_tokens == sum(len(answer.token_ids) for answer in answers)


@pytest.mark.parametrize("field", ["max_rows", "max_queued", "cache_bytes", "prefill_chunk"])
def test_a_limit_of_nothing_is_refused(field):
    with pytest.raises(UsageError, match=field):
        BatchingOptions(**{field: 0})


def test_a_prompt_that_is_encoded_elsewhere_is_answered_as_its_request_is(runner, batching):
    for request in REQUESTS:
        encoded = runner.prepare(request, runner.image_encoder(), threading.Event())
        found, expected = (batching.submit(each, SHORT).result(60) for each in (encoded, request))
        assert found.token_ids == expected.token_ids


def test_a_prompt_that_is_encoded_elsewhere_can_be_guided(runner, batching):
    encoded = runner.prepare(Request.ask("What?", think=False), runner.image_encoder(), threading.Event())
    answer = batching.submit(encoded, Sampling(max_new_tokens=9, guide=Guide.regex("(red|blue)!"))).result(60)
    assert answer.text in ("red!", "blue!")
