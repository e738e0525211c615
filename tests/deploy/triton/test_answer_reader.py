"""Responses of any size give one answer."""

from __future__ import annotations

import json

import numpy as np
import pytest

from r1v_export.deploy.triton.answer_reader import AnswerReader
from r1v_export.deploy.triton.sampling_parameters import logprobs_json
from r1v_export.errors import GraphError
from r1v_export.runner.answer import Answer, Timings, TokenEvent
from r1v_export.runner.sampling import TokenLogprobs
from r1v_export.serve.responses import usage

ANSWER = Answer("so it is", "A1", True, (5, 6, 7, 8, 9), "stop", 12, 4, Timings(), reasoning_tokens=3)
PIECES = [("so", ""), (" it", ""), (" is", ""), ("", "A"), ("", "1")]


def responses(sizes: list[int], with_logprobs: bool) -> list[dict]:
    """The answer in responses of so many tokens each."""
    found, start = [], 0
    for size in sizes:
        span = slice(start, start + size)
        start += size
        reasoning, text = ("".join(part) for part in zip(*PIECES[span], strict=True)) if size else ("", "")
        outputs = {
            "token_ids": np.array(ANSWER.token_ids[span], dtype=np.int64),
            "reasoning_output": reasoning.encode(),
            "text_output": text.encode(),
        }
        if with_logprobs and size:
            pairs = zip(ANSWER.token_ids[span], PIECES[span], strict=True)
            events = [TokenEvent(0, id_, *piece, None, TokenLogprobs(-id_ / 4, ((id_, -0.5),))) for id_, piece in pairs]
            outputs["logprobs"] = logprobs_json(events).encode()
        found.append(outputs)
    found[-1] |= {"finish_reason": b"stop", "usage": json.dumps(usage([ANSWER])).encode()}
    return found


@pytest.mark.parametrize("with_logprobs", [False, True])
@pytest.mark.parametrize("sizes", [[1] * 5, [5], [2, 3], [0, 4, 1], [3, 2, 0]])
def test_responses_of_any_size_give_the_answer_and_each_token_once(sizes, with_logprobs):
    reader = AnswerReader()
    events = [event for outputs in responses(sizes, with_logprobs) for event in reader.read(outputs)]
    assert tuple(event.token_id for event in events if event.token_id is not None) == ANSWER.token_ids
    assert [event.answer is not None for event in events] == [False] * (len(events) - 1) + [True]
    answer = events[-1].answer
    for name in ("reasoning", "text", "reasoning_complete", "token_ids", "finish_reason", "prompt_tokens"):
        assert getattr(answer, name) == getattr(ANSWER, name)
    assert (answer.reused_tokens, answer.reasoning_tokens) == (4, 3)
    assert "".join(event.reasoning for event in events) == ANSWER.reasoning
    assert "".join(event.text for event in events) == ANSWER.text
    if with_logprobs:
        found = [(event.reasoning, event.text, event.logprobs.logprob) for event in events if event.logprobs]
        assert found == [(*piece, -id_ / 4) for id_, piece in zip(ANSWER.token_ids, PIECES, strict=True)]


def test_text_that_only_the_end_makes_certain_is_kept():
    outputs = responses([5], with_logprobs=True)
    outputs[-1]["text_output"] += b" <thin"
    (*_, last) = AnswerReader().read(outputs[-1])
    assert last.answer.text == "A1 <thin"


def test_outputs_of_another_version_are_refused():
    with pytest.raises(GraphError, match="token_ids"):
        AnswerReader().read({"token_id": np.array([3])})
