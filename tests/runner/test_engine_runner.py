from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
from PIL import Image

from r1v_export.errors import GraphError, InputError, UsageError
from r1v_export.processing.pipeline_document import describe_pipeline
from r1v_export.processing.preprocess import pixel_values
from r1v_export.processing.prompt import Turn, encode
from r1v_export.reference.language import CacheStep, rotary_tables
from r1v_export.runner import base
from r1v_export.runner.answer import AnswerText
from r1v_export.runner.engine_runner import EngineRunner
from r1v_export.runner.prompt_encoder import Request
from r1v_export.runner.sampling import Sampling

SHORT = Sampling(max_new_tokens=16)


def image(width: int, height: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


REQUESTS = [
    Request.ask("How many?", image(60, 56)),
    Request.ask("Left or right of the other image?", image(120, 56, 1), image(56, 170, 2)),
    Request.ask("No image here. " * 10, think=False),
]


def greedy_tokens(runner: EngineRunner, request: Request, count: int) -> list[int]:
    """The model run on the whole text for each token, pixels to logits, without any code of the runner's."""
    model, spec = runner.engine.model, runner.engine.model.spec
    pixels, tiles = pixel_values(request.images, spec.tiling)
    ids = encode(runner.tokenizer, runner.template, request.turns, tiles, spec.tokens_per_tile, think=request.think)
    generated: list[int] = []
    image = model.image_embeds(torch.from_numpy(pixels)).flatten(0, 1)
    embeds = model.embed(torch.tensor([ids]), image)
    for _ in range(count):
        step = CacheStep(torch.arange(embeds.shape[1])[None], None, None)
        logits, _ = model.language_model(embeds, rotary_tables(spec.language, 1024), step, None)
        generated.append(int(logits[0, -1].argmax()))
        if generated[-1] in runner.stop_ids:
            break
        row = torch.zeros(1, spec.language.hidden_size)
        embeds = torch.cat((embeds, model.embed(torch.tensor([generated[-1:]]), row)), dim=1)
    return generated


def test_answers_are_those_of_the_plain_model_alone_and_in_a_batch(runner):
    expected = [tuple(greedy_tokens(runner, request, 16)) for request in REQUESTS]
    together = runner.answers(REQUESTS, SHORT)
    assert [answer.token_ids for answer in together] == expected
    assert [runner.answer(request, SHORT).token_ids for request in REQUESTS] == expected


def test_many_tiles_go_through_vision_a_few_at_a_time_with_the_same_result(runner, monkeypatch):
    whole = runner.answer(REQUESTS[1], SHORT)
    monkeypatch.setattr(runner, "tiles_per_run", 1)
    assert runner.answer(REQUESTS[1], SHORT).token_ids == whole.token_ids


def test_more_requests_than_a_batch_holds_are_answered_in_order(runner, monkeypatch):
    expected = [answer.token_ids for answer in runner.answers(REQUESTS, SHORT)]
    monkeypatch.setattr(base, "MAX_BATCH", 2)
    assert [answer.token_ids for answer in runner.answers(REQUESTS, SHORT)] == expected


@pytest.mark.parametrize(
    ("count", "rows", "drafts", "opened"), [(1, 16, 0, 1), (2, 16, 0, 0), (1, 16, 4, 0), (2, 1, 0, 1)]
)
def test_one_request_at_a_time_without_drafts_is_decoded_as_one_sequence(
    runner, monkeypatch, count, rows, drafts, opened
):
    expected = [answer.token_ids for answer in runner.answers(REQUESTS[:count], SHORT)]
    asked = []

    def one_sequence_decoder(engine, capacity):
        asked.append(capacity)
        return engine.decoder(1, capacity)

    monkeypatch.setattr(type(runner.engine), "one_sequence_decoder", one_sequence_decoder, raising=False)
    monkeypatch.setattr(runner, "draft_tokens", drafts)
    events = runner.generate(REQUESTS[:count], SHORT, max_rows=rows)
    assert [event.answer.token_ids for event in events if event.answer] == expected
    assert len(asked) == opened


def test_the_events_of_a_request_add_up_to_its_answer(runner):
    sampling = Sampling(max_new_tokens=40, temperature=1.0, seed=2)
    events = list(runner.generate(REQUESTS, sampling))
    for index in range(len(REQUESTS)):
        own = [event for event in events if event.request == index]
        answer = own[-1].answer
        assert [event.answer for event in own[:-1]] == [None] * (len(own) - 1)
        assert tuple(event.token_id for event in own) == answer.token_ids
        assert "".join(event.reasoning for event in own) == answer.reasoning
        assert "".join(event.text for event in own) == answer.text


def test_thinking_decides_where_an_unclosed_text_belongs(runner):
    thinking = runner.answer(REQUESTS[0], SHORT)
    assert (thinking.reasoning != "", thinking.text, thinking.reasoning_complete) == (True, "", False)
    plain = runner.answer(REQUESTS[2], SHORT)
    assert (plain.reasoning, plain.text != "", plain.reasoning_complete) == ("", True, True)


def test_each_request_may_have_its_own_sampling(runner):
    samplings = [Sampling(max_new_tokens=n) for n in (3, 5, 7)]
    assert [len(a.token_ids) for a in runner.answers(REQUESTS, samplings)] == [3, 5, 7]
    with pytest.raises(UsageError, match="one for each"):
        runner.answers(REQUESTS, samplings[:2])


def test_a_stop_string_ends_the_answer_before_it(runner):
    full = runner.answer(REQUESTS[2], Sampling(max_new_tokens=24))
    stop = full.text[3:5]
    answer = runner.answer(REQUESTS[2], Sampling(max_new_tokens=24, stop=(stop,)))
    assert answer.text == full.text[: full.text.index(stop)].rstrip()
    assert answer.finish_reason == "stop"
    assert len(answer.token_ids) < len(full.token_ids)


def test_a_stop_token_ends_the_answer_and_is_not_in_its_text(engine, runner):
    tokens = runner.answer(REQUESTS[2], SHORT).token_ids
    stopping = EngineRunner(
        engine,
        runner.tokenizer,
        describe_pipeline(engine.model.spec, runner.tokenizer, {"eos_token_id": [tokens[6]]}),
    )
    answer = stopping.answer(REQUESTS[2], SHORT)
    first = tokens.index(tokens[6])
    assert answer.token_ids == tokens[: first + 1]
    assert answer.finish_reason == "stop"
    assert answer.text == runner.tokenizer.decode(tokens[:first]).strip()


def test_cancelling_keeps_the_answer_so_far(runner):
    cancel, events = threading.Event(), []
    for event in runner.generate(REQUESTS, SHORT, cancel):
        events.append(event)
        if len(events) == 3 * 4:
            cancel.set()
    answers = sorted((event.request, event.answer) for event in events if event.answer)
    expected = runner.answers(REQUESTS, SHORT)
    for (_, answer), full in zip(answers, expected, strict=True):
        assert answer.finish_reason == "cancelled"
        assert answer.token_ids == full.token_ids[:4]


def test_cancelling_before_the_images_are_encoded_gives_empty_answers(runner):
    cancel = threading.Event()
    cancel.set()
    assert [a.finish_reason for a in runner.answers(REQUESTS, SHORT, cancel)] == ["cancelled"] * 3


def test_an_answer_tells_its_tokens_and_times(runner):
    answer = runner.answer(REQUESTS[0], SHORT)
    tokens = encode(runner.tokenizer, runner.template, REQUESTS[0].turns, [1], runner.pipeline.tokens_per_tile)
    assert (answer.prompt_tokens, answer.reused_tokens) == (len(tokens), 0)
    timings = answer.timings
    assert timings.decode_steps == len(answer.token_ids) - 1
    stages = (timings.preprocess_ms, timings.vision_ms, timings.projector_ms, timings.embed_ms, timings.prefill_ms)
    assert all(stage > 0 for stage in stages)
    assert timings.first_token_ms == pytest.approx(sum(stages))
    assert timings.decode_steps_per_s == pytest.approx(1000 * timings.decode_steps / timings.decode_ms)


def test_a_prompt_longer_than_the_models_positions_is_refused(runner):
    with pytest.raises(InputError, match="fewer than 1024 tokens"):
        runner.answer(Request.ask("word " * 300), SHORT)


@pytest.mark.parametrize("stage", ["vision", "projector", "embed"])
def test_a_stage_that_gives_nan_is_named(runner, monkeypatch, stage):
    real = getattr(runner.engine, stage)

    def broken(*arrays):
        result = real(*arrays).copy()
        result.flat[7] = np.nan
        return result

    monkeypatch.setattr(runner.engine, stage, broken)
    with pytest.raises(GraphError, match="1 of") as error:
        runner.answer(REQUESTS[0], SHORT)
    assert error.value.where == stage


def test_reasoning_and_answer_are_separated_over_tokens_of_any_size():
    pieces = [b"it is \xe7", b"\xba\xa2", b"</th", b"ink>\n", b"\nred", b" one STO", b"P!"]
    text = AnswerText(pieces.__getitem__, Sampling(stop=("STOP",)), thinking=True)
    streamed = [text.push(i) for i in range(len(pieces))]
    assert [piece.reasoning for piece in streamed] == ["it is", " 红", "", "", "", "", ""]
    assert [piece.answer for piece in streamed] == ["", "", "", "", "red", " one", ""]
    assert text.stopped
    text.flush()
    assert (text.reasoning, text.text, text.in_reasoning) == ("it is 红", "red one", False)


def answer_text(text: str, sampling: Sampling, thinking: bool = True) -> tuple[str, str, bool]:
    """Reasoning, answer and whether a stop string ended it, of a text that comes character by character."""
    answer = AnswerText(lambda id_: chr(id_).encode(), sampling, thinking)
    for character in text:
        answer.push(ord(character))
        if answer.stopped:
            break
    answer.flush()
    return answer.reasoning, answer.text, answer.stopped


def test_stop_strings_do_not_end_the_reasoning():
    sampling = Sampling(stop=("\n\n", "END"))
    text = "one END\n\ntwo</think>\n\nThree\nEND four"
    assert answer_text(text, sampling) == ("one END\n\ntwo", "Three", True)
    assert answer_text("One.\n\nTwo.", sampling, thinking=False) == ("", "One.", True)
    assert answer_text("\n\n<think>a\n\nb</think>\n\nc", sampling, thinking=False) == ("a\n\nb", "c", False)


def test_stop_strings_end_the_reasoning_where_that_is_asked_for():
    sampling = Sampling(stop=("\n\n",), stop_in_reasoning=True)
    assert answer_text("one\n\ntwo</think>Three", sampling) == ("one", "", True)
    assert answer_text("one</think>\n\nThree", sampling) == ("one", "", True)


def test_an_answer_that_fills_the_models_context_says_so(runner):
    request = Request.ask("word " * 190)
    answer = runner.answer(request, Sampling(max_new_tokens=5000))
    assert answer.finish_reason == "context"
    assert answer.prompt_tokens + len(answer.token_ids) == runner.max_positions
    fitting = len(answer.token_ids)
    assert runner.answer(request, Sampling(max_new_tokens=fitting)).finish_reason == "length"


def test_turns_out_of_order_are_refused(runner):
    with pytest.raises(InputError, match="out of order"):
        runner.answer(Request((Turn("assistant", "hello"),)), SHORT)


def test_reasoning_ends_after_its_budget_with_the_models_own_tag(runner):
    end = runner.reasoning_end_ids()
    plain = runner.answer(REQUESTS[0], Sampling(max_new_tokens=40))
    assert plain.reasoning_tokens == 40
    for budget in (0, 5):
        answer = runner.answer(REQUESTS[0], Sampling(max_new_tokens=40, max_reasoning_tokens=budget))
        assert answer.token_ids[:budget] == plain.token_ids[:budget]
        assert list(answer.token_ids[budget : budget + len(end)]) == end
        assert answer.reasoning_complete
        assert answer.reasoning_tokens == budget + len(end)
        assert len(answer.token_ids) == 40
    unthinking = runner.answer(REQUESTS[2], Sampling(max_new_tokens=12, max_reasoning_tokens=0))
    assert unthinking.token_ids == runner.answer(REQUESTS[2], Sampling(max_new_tokens=12)).token_ids


def test_log_probabilities_come_with_each_token_and_with_the_answer(runner):
    events = list(runner.generate([REQUESTS[0]], Sampling(max_new_tokens=6, logprobs=3)))
    answer = events[-1].answer
    assert [event.logprobs for event in events] == list(answer.logprobs)
    for event in events:
        assert event.logprobs.top[0] == (event.token_id, event.logprobs.logprob)
        assert len(event.logprobs.top) == 3
    assert runner.answer(REQUESTS[0], SHORT).logprobs == ()
