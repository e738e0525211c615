"""Sampling and log probabilities, there and back."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest

from r1v_export.deploy.triton.sampling_parameters import (
    LogprobsDocument,
    SamplingParameters,
    logprobs_json,
    sampling_json,
)
from r1v_export.errors import InputError, UsageError
from r1v_export.generation import Guide, Sampling
from r1v_export.runner.answer import TokenEvent
from r1v_export.runner.sampling import TokenLogprobs
from r1v_export.strict import parse_json


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(seed=None),
        Sampling(
            max_new_tokens=7,
            temperature=0.25,
            top_p=0.5,
            top_k=9,
            min_p=0.125,
            repetition_penalty=1.5,
            presence_penalty=-1,
            frequency_penalty=0.5,
            logit_bias={3: -100.0, 12: 2.5},
            seed=11,
            stop=("a", "b"),
            max_reasoning_tokens=0,
            logprobs=4,
            ignore_eos=True,
        ),
        Sampling(guide=Guide.regex(r"[0-9]+"), logprobs=0),
        Sampling(guide=Guide.json_schema({"type": "object", "properties": {"b": {}, "a": {}}})),
        Sampling(guide=Guide.json_object()),
    ],
)
def test_what_one_side_writes_the_other_reads(sampling):
    options = parse_json(SamplingParameters, sampling_json(sampling), InputError, "")
    own = Sampling(max_new_tokens=5, temperature=1, top_p=0.75, top_k=3, repetition_penalty=2, seed=None)
    assert replace(own, **options.changes) == sampling


def test_no_setting_is_forgotten():
    """A field of Sampling that is added is a case above, or refused."""
    cases = test_what_one_side_writes_the_other_reads.pytestmark[0].args[1]
    tried = {each.name for case in cases for each in fields(Sampling) if getattr(case, each.name) != each.default}
    assert {each.name for each in fields(Sampling)} - tried - {"logit_bias"} == {"stop_in_reasoning"}
    with pytest.raises(UsageError, match="stop_in_reasoning"):
        sampling_json(Sampling(stop_in_reasoning=True))


def test_log_probabilities_come_with_the_text_of_their_tokens():
    likely = TokenLogprobs(-0.5, ((4, -0.5), (5, -1.0)))
    events = [TokenEvent(0, 4, "so", "", None, likely), TokenEvent(0, None, "", "end")]
    document = parse_json(LogprobsDocument, logprobs_json(events), InputError, "")
    (token,) = document.tokens
    assert (token.reasoning, token.text, token.logprobs) == ("so", "", likely)
