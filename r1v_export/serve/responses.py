"""The JSON that the completion routes answer with.

Source: the OpenAI API reference. `reasoning_content` is DeepSeek's, vLLM's and SGLang's name for the reasoning,
`reasoning` OpenRouter's and newer vLLM's: both are sent.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from r1v_export.generation import FinishReason
from r1v_export.runner.answer import Answer, TokenEvent
from r1v_export.serve.logprobs import TokenBytes, chat_logprobs, chat_token, text_logprobs
from r1v_export.serve.protocol import JsonObject

DONE = "data: [DONE]\n\n"
"""What ends a stream of events."""

_FINISH: dict[FinishReason, str] = {"stop": "stop", "length": "length", "context": "length"}


def sse(body: JsonObject) -> str:
    """One server-sent event."""
    return f"data: {json.dumps(body, ensure_ascii=False, separators=(',', ':'))}\n\n"


def usage(answers: Sequence[Answer]) -> JsonObject:
    """Tokens of one prompt and of its answers."""
    prompt, completion = answers[0].prompt_tokens, sum(len(answer.token_ids) for answer in answers)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": min(answer.reused_tokens for answer in answers)},
        "completion_tokens_details": {"reasoning_tokens": sum(answer.reasoning_tokens for answer in answers)},
    }


def finish(reason: FinishReason) -> str:
    """Why an answer ended, as the API names it."""
    return _FINISH.get(reason, reason)


@dataclass(frozen=True)
class Head:
    """What the response to one request begins with.

    Attributes:
        id: of the completion.
        model: its served name.
        chat: a chat completion, whose answers are messages.
        token_bytes: token id -> its bytes, for log probabilities.
    """

    id: str
    model: str
    chat: bool
    token_bytes: TokenBytes
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, answers: Sequence[Answer]) -> JsonObject:
        """The response to a request that is not streamed."""
        choices = [self._choice(index, answer) for index, answer in enumerate(answers)]
        kind = "chat.completion" if self.chat else "text_completion"
        return {**self._fields(kind), "choices": choices, "usage": usage(answers)}

    def opening(self, index: int) -> JsonObject:
        """The first event of a chat answer."""
        return self._chunk(index, {"role": "assistant", "content": ""}, None)

    def piece(self, event: TokenEvent, in_answer: bool) -> JsonObject:
        """An event with what is new in an answer.

        Args:
            in_answer: the answer itself has begun, so that the token is not the reasoning's.
        """
        if not self.chat:
            logprobs = self._text_logprobs(event)
            return self._chunk(event.request, {"text": event.reasoning + event.text}, None, logprobs)
        delta: JsonObject = {"content": event.text} if event.text else {}
        if event.reasoning:
            delta |= {"reasoning_content": event.reasoning, "reasoning": event.reasoning}
        return self._chunk(event.request, delta, None, self._chat_logprobs(event, in_answer))

    def _text_logprobs(self, event: TokenEvent) -> JsonObject | None:
        if event.token_id is None or event.logprobs is None:
            return None
        return text_logprobs([event.token_id], [event.logprobs], self.token_bytes)

    def _chat_logprobs(self, event: TokenEvent, in_answer: bool) -> JsonObject | None:
        if event.token_id is None or event.logprobs is None:
            return None
        tokens = [chat_token(event.token_id, event.logprobs, self.token_bytes)]
        return {"content": tokens if in_answer else [], "reasoning": [] if in_answer else tokens, "refusal": None}

    def ending(self, index: int, answer: Answer) -> JsonObject:
        """The last event of an answer."""
        return self._chunk(index, {} if self.chat else {"text": ""}, finish(answer.finish_reason))

    def usage_event(self, answers: Sequence[Answer]) -> JsonObject:
        """The event after all answers, for a client that asks for it."""
        return {**self._fields(self._chunk_kind), "choices": [], "usage": usage(answers)}

    @property
    def _chunk_kind(self) -> str:
        return "chat.completion.chunk" if self.chat else "text_completion"

    def _fields(self, kind: str) -> JsonObject:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}

    def _chunk(
        self, index: int, delta: JsonObject, reason: str | None, logprobs: JsonObject | None = None
    ) -> JsonObject:
        content = {"delta": delta} if self.chat else delta
        choice = {"index": index, **content, "logprobs": logprobs, "finish_reason": reason}
        return {**self._fields(self._chunk_kind), "choices": [choice]}

    def _choice(self, index: int, answer: Answer) -> JsonObject:
        if not self.chat:
            content: JsonObject = {"text": answer.reasoning + answer.text}
            logprobs = text_logprobs(answer.token_ids, answer.logprobs, self.token_bytes)
        else:
            reasoning = answer.reasoning or None
            message = {"role": "assistant", "content": answer.text, "refusal": None}
            content = {"message": {**message, "reasoning_content": reasoning, "reasoning": reasoning}}
            logprobs = chat_logprobs(answer, self.token_bytes)
        return {"index": index, **content, "logprobs": logprobs, "finish_reason": finish(answer.finish_reason)}
