"""Guided answers of a model with random weights, which would keep no form by itself."""

from __future__ import annotations

import json
import re
import sys

import numpy as np
import pytest

from r1v_export.errors import CapabilityError, InputError
from r1v_export.generation import Guide, Sampling
from r1v_export.runner.batching.batching_runner import BatchingRunner
from r1v_export.runner.guided import GuideCompiler
from tests.runner.test_engine_runner import REQUESTS

SCHEMA = {
    "type": "object",
    "properties": {"color": {"enum": ["red", "green"]}, "count": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["color", "count"],
    "additionalProperties": False,
}


def sampling(guide: Guide, **settings) -> Sampling:
    return Sampling(**{"max_new_tokens": 300, "temperature": 1.0, "guide": guide, **settings})


@pytest.mark.parametrize("seed", range(4))
def test_an_answer_keeps_a_json_schema_and_ends_by_itself(runner, seed):
    answer = runner.answer(REQUESTS[2], sampling(Guide.json_schema(SCHEMA), seed=seed))
    found = json.loads(answer.text)
    assert found["color"] in ("red", "green")
    assert 0 <= found["count"] <= 99
    assert set(found) == {"color", "count"}
    assert answer.finish_reason == "stop"


@pytest.mark.parametrize("pattern", ["(yes|no), [0-9]{3}", "[a-f]{2,9};", "größer|kleiner"])
def test_an_answer_keeps_a_regular_expression_greedy_or_drawn(runner, pattern):
    for temperature in (0.0, 1.5):
        answer = runner.answer(REQUESTS[2], sampling(Guide.regex(pattern), temperature=temperature))
        assert re.fullmatch(pattern, answer.text)
        assert answer.finish_reason == "stop"


def test_reasoning_is_free_and_the_answer_behind_it_is_guided(runner):
    guided = sampling(Guide.regex("(yes|no)"), temperature=0.0, max_reasoning_tokens=10)
    answer = runner.answer(REQUESTS[0], guided)
    free = runner.answer(REQUESTS[0], Sampling(max_new_tokens=10))
    assert answer.token_ids[:10] == free.token_ids
    assert answer.text in ("yes", "no")
    assert (answer.reasoning_complete, answer.finish_reason) == (True, "stop")


def test_guided_and_free_requests_run_together(runner):
    free = Sampling(max_new_tokens=40)
    expected = runner.answer(REQUESTS[2], free).token_ids
    with BatchingRunner(runner) as batching:
        first = batching.submit(REQUESTS[2], sampling(Guide.json_object(), max_new_tokens=30))
        second = batching.submit(REQUESTS[2], free)
        bad = batching.submit(REQUESTS[2], sampling(Guide.regex("(")))
        assert first.result(60).text.startswith("{")
        assert second.result(60).token_ids == expected
        with pytest.raises(InputError, match="regular expression"):
            bad.result(60)


@pytest.mark.parametrize(
    "guide",
    [Guide.regex("a("), Guide.json_schema({"type": "nothing"}), Guide("json_schema", "{"), Guide.regex("(?=a)b")],
)
def test_a_guide_that_cannot_be_used_is_an_input_error(runner, guide):
    with pytest.raises(InputError, match="cannot be guided by this") as caught:
        runner.answer(REQUESTS[2], sampling(guide))
    assert "start:" not in str(caught.value.found)
    assert "\n" not in str(caught.value.found)
    assert str(caught.value.fix).startswith("correct the ")


def test_tokens_that_may_not_come_have_no_logit_and_stop_tokens_come_where_the_form_is_complete(runner):
    guide = GuideCompiler(runner.tokenizer, runner.stop_ids).compile(Guide.regex("ab?"))
    a, b = (runner.tokenizer.encode_text(letter)[0] for letter in "ab")
    stops = set(runner.stop_ids)
    for expected, taken in (({a}, a), ({b, *stops}, b), (stops, min(stops))):
        allowed = guide.allowed(np.zeros(320, np.float32))
        assert set(np.flatnonzero(np.isfinite(allowed)).tolist()) == expected
        guide.take(taken)


def test_without_llguidance_the_package_to_install_is_named(runner, monkeypatch):
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(CapabilityError, match=r"pip install .llguidance"):
        GuideCompiler(runner.tokenizer, runner.stop_ids).compile(Guide.json_object())
