"""Responses of the Triton models become the events of an answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from r1v_export.deploy.triton.sampling_parameters import LogprobsDocument
from r1v_export.deploy.triton.tensors import (
    FINISH_REASON,
    LOGPROBS,
    REASONING_OUTPUT,
    TEXT_OUTPUT,
    TOKEN_IDS,
    USAGE,
)
from r1v_export.errors import GraphError
from r1v_export.generation import FinishReason
from r1v_export.runner.answer import Answer, Timings, TokenEvent
from r1v_export.runner.sampling import TokenLogprobs
from r1v_export.strict import load_json, parse_json


class AnswerReader:
    """One answer while its responses come."""

    def __init__(self) -> None:
        self.reasoning = self.text = ""
        self.token_ids: list[int] = []
        self.logprobs: list[TokenLogprobs] = []
        self.ended = False

    def read(self, outputs: Mapping[str, Any]) -> list[TokenEvent]:
        """The events of a response, one for each token; the text of several is that of the first, unless log
        probabilities say which is whose.

        Args:
            outputs: by their names, strings as bytes.

        Raises:
            GraphError: the response is not the model's.
        """
        events = self._tokens(outputs)
        for event in events:
            self.reasoning += event.reasoning
            self.text += event.text
            self.token_ids += [] if event.token_id is None else [event.token_id]
            self.logprobs += [] if event.logprobs is None else [event.logprobs]
        if FINISH_REASON not in outputs:
            return events
        reason: Any = outputs[FINISH_REASON].decode()
        usage = load_json(outputs.get(USAGE, b""), GraphError, "Triton's usage cannot be read")
        last = events.pop() if events else TokenEvent(0, None, "", "")
        answer = self.end(
            reason,
            usage["prompt_tokens"],
            usage["prompt_tokens_details"]["cached_tokens"],
            usage["completion_tokens_details"]["reasoning_tokens"],
        )
        return [*events, replace(last, answer=answer)]

    def end(
        self, reason: FinishReason, prompt_tokens: int = 0, reused_tokens: int = 0, reasoning_tokens: int = 0
    ) -> Answer:
        """The answer, which has ended."""
        self.ended = True
        return Answer(
            reasoning=self.reasoning,
            text=self.text,
            reasoning_complete=bool(self.text) or reasoning_tokens < len(self.token_ids),
            token_ids=tuple(self.token_ids),
            finish_reason=reason,
            prompt_tokens=prompt_tokens,
            reused_tokens=reused_tokens,
            timings=Timings(),
            reasoning_tokens=reasoning_tokens,
            logprobs=tuple(self.logprobs),
        )

    def _tokens(self, outputs: Mapping[str, Any]) -> list[TokenEvent]:
        try:
            ids: np.ndarray = outputs[TOKEN_IDS]
            reasoning, text = (outputs[name].decode() for name in (REASONING_OUTPUT, TEXT_OUTPUT))
        except KeyError as error:
            fix = "deploy the bundle with this version of r1v-export"
            raise GraphError("Triton's response lacks an output.", where=str(error), fix=fix) from error
        events: list[TokenEvent] = []
        if LOGPROBS in outputs:
            what = "Triton's logprobs cannot be read"
            pieces = parse_json(LogprobsDocument, outputs[LOGPROBS], GraphError, what).tokens
            for token_id, piece in zip(ids, pieces, strict=False):
                events.append(TokenEvent(0, int(token_id), piece.reasoning, piece.text, None, piece.logprobs))
                reasoning, text = reasoning[len(piece.reasoning) :], text[len(piece.text) :]
            ids = ids[len(events) :]
        for token_id in ids:
            events.append(TokenEvent(0, int(token_id), reasoning, text))
            reasoning = text = ""
        if reasoning or text:  # what the end of an answer makes certain, without a token
            events.append(TokenEvent(0, None, reasoning, text))
        return events
