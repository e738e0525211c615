"""What travels as JSON to and from the Triton models: how an answer is sampled, and log probabilities."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import Field

from r1v_export.generation import MOST_LOGPROBS, Guide, Sampling, require_unused
from r1v_export.runner.answer import TokenEvent
from r1v_export.runner.sampling import TokenLogprobs
from r1v_export.serve.protocol import SamplingOptions
from r1v_export.strict import StrictModel


class SamplingParameters(SamplingOptions):
    """`sampling_parameters` of `r1v` and `r1v_llm`: the fields of `/v1/chat/completions`."""

    logprobs: Annotated[int, Field(ge=0, le=MOST_LOGPROBS)] | None = None
    """Report log probabilities, and those of this many likeliest tokens in each one's place."""

    @property
    def logprob_count(self) -> int | None:
        return self.logprobs


class TokenPiece(StrictModel):
    """One token of a response, where log probabilities are asked for: what it made certain, and how likely it was."""

    reasoning: str
    text: str
    logprob: float
    top: list[tuple[int, float]]

    @property
    def logprobs(self) -> TokenLogprobs:
        """As the runner has them."""
        return TokenLogprobs(self.logprob, tuple(self.top))


class LogprobsDocument(StrictModel):
    """`logprobs` of a response."""

    tokens: list[TokenPiece]


def sampling_json(sampling: Sampling) -> str:
    """The `sampling_parameters` that say the same; what they omit is not set in `sampling`.

    Raises:
        UsageError: a setting that the models do not take.
    """
    require_unused(sampling, ("stop_in_reasoning",), "Triton's model")
    fields: dict[str, Any] = {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "min_p": sampling.min_p,
        "max_tokens": sampling.max_new_tokens,
        "repetition_penalty": sampling.repetition_penalty,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "logit_bias": {str(token_id): bias for token_id, bias in sampling.logit_bias.items()} or None,
        "seed": sampling.seed,
        "stop": list(sampling.stop) or None,
        "thinking_budget": sampling.max_reasoning_tokens,
        "logprobs": sampling.logprobs,
        "ignore_eos": sampling.ignore_eos or None,
        **_guide_fields(sampling.guide),
    }
    return json.dumps({name: value for name, value in fields.items() if value is not None})


def logprobs_json(events: Sequence[TokenEvent]) -> str:
    """The `logprobs` of a response."""
    pieces = [
        {"reasoning": event.reasoning, "text": event.text, "logprob": event.logprobs.logprob, "top": event.logprobs.top}
        for event in events
        if event.logprobs is not None
    ]
    return json.dumps({"tokens": pieces}, ensure_ascii=False)


def _guide_fields(guide: Guide | None) -> dict[str, Any]:
    if guide is None:
        return {}
    if guide.kind == "regex":
        return {"guided_regex": guide.text}
    schema = {"name": "answer", "schema": json.loads(guide.text)}
    return {"response_format": {"type": "json_schema", "json_schema": schema}}
