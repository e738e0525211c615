"""A library's own decoding in the place of our loop: stand-ins that compute with the same model must give the same
events, token for token and piece for piece."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from r1v_export.errors import GraphError, InputError
from r1v_export.generation import Generated, Generator, Sampling
from r1v_export.processing.pipeline_document import describe_pipeline
from r1v_export.processing.prompt import Turn
from r1v_export.runner.answer import TokenEvent
from r1v_export.runner.base import TILES_PER_RUN, BaseRunner
from r1v_export.runner.engine_runner import EngineRunner
from r1v_export.runner.generator_runner import GeneratorRunner
from r1v_export.runner.prompt_encoder import Request
from r1v_export.targets.tensorrt_llm.build.command import EngineSizes
from r1v_export.targets.tensorrt_llm.runtime import prompt_table
from r1v_export.targets.tensorrt_llm.runtime.executor import ExecutorSession
from r1v_export.targets.tensorrt_llm.runtime.llm_api import LlmApiSession
from tests.runner.test_engine_runner import REQUESTS, image
from tests.targets.tensorrt_llm import stand_in

SHORT = Sampling(max_new_tokens=16)
SIZES = EngineSizes(max_batch_size=4, max_input_len=900, max_seq_len=1000, max_num_tokens=1000, max_multimodal_len=800)


@pytest.fixture
def executor(runner: EngineRunner) -> stand_in.Executor:
    return stand_in.Executor(runner.engine.model)


@pytest.fixture
def llm(runner: EngineRunner) -> stand_in.Llm:
    return stand_in.Llm(runner.engine.model)


def over(session: Generator, runner: EngineRunner, stops: dict[str, Any] | None = None) -> GeneratorRunner:
    pipeline = describe_pipeline(runner.engine.model.spec, runner.tokenizer, stops or {})
    return GeneratorRunner(session, runner.engine, runner.tokenizer, pipeline, runner.hidden)


def over_executor(
    runner: EngineRunner, executor: stand_in.Executor, stops: dict[str, Any] | None = None
) -> GeneratorRunner:
    spec = runner.engine.model.spec
    sizes = {"vocab_size": spec.language.vocab_size, "hidden_size": spec.language.hidden_size}
    config: Any = SimpleNamespace(dtype="float32", **sizes)
    bindings = stand_in.bindings(executor.model)
    session = ExecutorSession(executor, bindings, config, SIZES, spec.image_token_id)
    return over(session, runner, stops)


def over_llm_api(runner: EngineRunner, llm: stand_in.Llm, stops: dict[str, Any] | None = None) -> GeneratorRunner:
    session = LlmApiSession(llm, stand_in, torch.float32, 1000)
    return over(session, runner, stops)


@pytest.fixture(params=["executor", "llm-api"])
def library(request, runner, executor, llm):
    """A runner over one of the two, made anew with other stop tokens where some are given."""

    def made(stops: dict[str, Any] | None = None) -> GeneratorRunner:
        return (
            over_executor(runner, executor, stops) if request.param == "executor" else over_llm_api(runner, llm, stops)
        )

    return made


def events_of(runner: BaseRunner, requests: list[Request], sampling: Any, index: int = 0) -> list[TokenEvent]:
    """What one request's events say, times aside."""
    return [
        (event.token_id, event.reasoning, event.text, event.answer and facts_of(event.answer))
        for event in runner.generate(requests, sampling)
        if event.request == index
    ]


def facts_of(answer: Any) -> tuple[Any, ...]:
    fields = ("reasoning", "text", "reasoning_complete", "token_ids", "finish_reason", "prompt_tokens", "reused_tokens")
    return tuple(getattr(answer, field) for field in fields)


@pytest.mark.parametrize("index", range(len(REQUESTS)))
def test_events_are_those_of_our_own_loop_with_no_several_and_one_image(runner, library, index):
    assert events_of(library(), REQUESTS, SHORT, index) == events_of(runner, REQUESTS, SHORT, index)


def test_a_stop_token_ends_the_answer_as_in_our_own_loop(engine, runner, library):
    token = runner.answer(REQUESTS[2], SHORT).token_ids[6]
    for stops in ({"eos_token_id": [token]}, {"eos_token_id": [token, 299]}, {"eos_token_id": [0, token]}):
        own = EngineRunner(engine, runner.tokenizer, describe_pipeline(engine.model.spec, runner.tokenizer, stops))
        expected = events_of(own, [REQUESTS[2]], SHORT)

        assert events_of(library(stops), [REQUESTS[2]], SHORT) == expected
        assert expected[-1][3][4] == "stop"


def test_a_stop_string_ends_the_answer_as_in_our_own_loop_and_frees_the_request(runner, executor):
    full = runner.answer(REQUESTS[2], Sampling(max_new_tokens=24))
    sampling = Sampling(max_new_tokens=24, stop=(full.text[3:5],))

    assert events_of(over_executor(runner, executor), [REQUESTS[2]], sampling) == events_of(
        runner, [REQUESTS[2]], sampling
    )
    assert (len(executor.cancelled), executor.working) == (1, {})


def test_characters_come_out_whole(runner, library):
    """Random bytes of the byte tokenizer are rarely whole characters; what streams must add up all the same."""
    events = list(library().generate([REQUESTS[2]], Sampling(max_new_tokens=40)))
    answer = events[-1].answer

    assert "".join(event.text for event in events) == answer.text
    assert any(event.text == "" for event in events[:-1])


def test_requests_of_a_batch_are_open_together_and_answered_in_order(runner, executor):
    expected = [answer.token_ids for answer in runner.answers(REQUESTS, SHORT)]

    answers = over_executor(runner, executor).answers(REQUESTS, SHORT)

    assert [answer.token_ids for answer in answers] == expected
    assert executor.open_at_once == len(REQUESTS)
    assert executor.working == {}


def test_events_of_a_batch_are_interleaved(runner, executor):
    indices = [event.request for event in over_executor(runner, executor).generate(REQUESTS, SHORT)]

    assert indices[:6] == [0, 1, 2, 0, 1, 2]


def test_each_request_may_have_its_own_length(runner, library):
    samplings = [Sampling(max_new_tokens=n) for n in (3, 5, 7)]

    assert [len(answer.token_ids) for answer in library().answers(REQUESTS, samplings)] == [3, 5, 7]


def test_another_image_of_the_same_size_is_not_answered_from_the_first_one_s_cache(runner, executor):
    requests = [Request.ask("How many?", image(60, 56, seed)) for seed in (0, 5, 0)]
    expected = [answer.token_ids for answer in runner.answers(requests, SHORT)]
    assert expected[0] != expected[1]

    deployed = over_executor(runner, executor)

    assert [deployed.answer(request, SHORT).token_ids for request in requests] == expected


def test_the_stand_in_would_notice_images_that_are_confused(runner, executor, monkeypatch):
    monkeypatch.setattr(prompt_table, "extra_id", lambda image: 1)
    deployed = over_executor(runner, executor)
    requests = [Request.ask("How many?", image(60, 56, seed)) for seed in (0, 5)]

    first, second = (deployed.answer(request, SHORT).token_ids for request in requests)

    assert first == second


def test_images_of_several_turns_stand_in_their_places(runner, library):
    turns = (
        Turn("user", "And this?", images=1),
        Turn("assistant", "Red."),
        Turn("user", "<image> or <image>?", images=2),
    )
    request = Request(turns, (image(60, 56), image(120, 56, 1), image(56, 56, 2)))

    assert library().answer(request, SHORT).token_ids == runner.answer(request, SHORT).token_ids


def test_cancelling_keeps_the_answers_so_far_and_frees_the_requests(runner, executor):
    cancel, events = threading.Event(), []
    for event in over_executor(runner, executor).generate(REQUESTS, SHORT, cancel):
        events.append(event)
        if len(events) == 3 * 4:
            cancel.set()

    answers = [event.answer for event in sorted(events, key=lambda event: event.request) if event.answer]
    for answer, full in zip(answers, runner.answers(REQUESTS, SHORT), strict=True):
        assert answer.finish_reason == "cancelled"
        assert answer.token_ids == full.token_ids[:4]
    assert executor.working == {}


def test_cancelling_before_the_images_are_encoded_asks_nothing(runner, executor):
    cancel = threading.Event()
    cancel.set()

    answers = over_executor(runner, executor).answers(REQUESTS[:1], SHORT, cancel)

    assert [answer.finish_reason for answer in answers] == ["cancelled"]
    assert executor.requests == []


def test_leaving_the_loop_frees_every_request(runner, executor):
    events = over_executor(runner, executor).generate(REQUESTS, SHORT)
    next(events)
    assert len(executor.working) == len(REQUESTS)

    events.close()

    assert executor.working == {}
    assert sorted(executor.cancelled) == [1, 2, 3]


def test_a_failure_frees_the_other_requests(runner, executor):
    events = over_executor(runner, executor).generate(REQUESTS, SHORT)
    next(events)
    executor.fail = "out of blocks"

    with pytest.raises(GraphError, match="out of blocks"):
        list(events)
    assert executor.working == {}


def test_a_library_that_ends_without_a_reason_is_reported(runner):
    class Silent:
        """Makes one token, and is its own generation."""

        name, max_tokens, given = "silent", 1000, 0

        def generate(self, *_: object) -> Silent:
            return self

        def __next__(self) -> Generated:
            self.given += 1
            if self.given > 1:
                raise StopIteration
            return Generated([1])

        def close(self) -> None: ...

    deployed = over(Silent(), runner)

    with pytest.raises(GraphError, match="without saying why"):
        deployed.answer(REQUESTS[2], SHORT)


def test_answers_end_where_the_engine_s_room_does(runner, executor):
    request = Request.ask("x" * 850)
    answer = over_executor(runner, executor).answer(request, Sampling(max_new_tokens=512))

    assert answer.finish_reason == "context"
    assert answer.prompt_tokens + len(answer.token_ids) == SIZES.max_seq_len


def test_a_prompt_beyond_the_engine_s_room_is_refused(runner, executor):
    with pytest.raises(InputError, match="fewer than 1000 tokens"):
        over_executor(runner, executor).answer(Request.ask("x" * 1000), SHORT)
    assert executor.requests == []


def test_an_answer_tells_its_times(runner, library):
    timings = library().answer(REQUESTS[0], SHORT).timings

    assert min(timings.preprocess_ms, timings.vision_ms, timings.projector_ms) > 0
    assert min(timings.prefill_ms, timings.decode_ms) > 0
    assert timings.decode_steps == 15


def test_as_many_tiles_are_encoded_together_as_there_are_places(runner, executor, monkeypatch):
    encoded: list[int] = []
    real = runner.engine.vision
    monkeypatch.setattr(runner.engine, "vision", lambda tiles: encoded.append(len(tiles)) or real(tiles))
    deployed = over_executor(runner, executor)
    deployed.tiles_per_run = 8

    deployed.answer(REQUESTS[1], SHORT)

    assert len(encoded) == 1
    assert encoded[0] > TILES_PER_RUN
