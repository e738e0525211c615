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
from r1v_export.runner.answer import Answer
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
    """

    id: str
    model: str
    chat: bool
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, answers: Sequence[Answer]) -> JsonObject:
        """The response to a request that is not streamed."""
        choices = [self._choice(index, answer) for index, answer in enumerate(answers)]
        kind = "chat.completion" if self.chat else "text_completion"
        return {**self._fields(kind), "choices": choices, "usage": usage(answers)}

    def opening(self, index: int) -> JsonObject:
        """The first event of a chat answer."""
        return self._chunk(index, {"role": "assistant", "content": ""}, None)

    def piece(self, index: int, reasoning: str, text: str) -> JsonObject:
        """An event with what is new in an answer."""
        if not self.chat:
            return self._chunk(index, {"text": reasoning + text}, None)
        delta: JsonObject = {"content": text} if text else {}
        if reasoning:
            delta |= {"reasoning_content": reasoning, "reasoning": reasoning}
        return self._chunk(index, delta, None)

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

    def _chunk(self, index: int, delta: JsonObject, reason: str | None) -> JsonObject:
        content = {"delta": delta} if self.chat else delta
        choice = {"index": index, **content, "logprobs": None, "finish_reason": reason}
        return {**self._fields(self._chunk_kind), "choices": [choice]}

    def _choice(self, index: int, answer: Answer) -> JsonObject:
        if not self.chat:
            content: JsonObject = {"text": answer.reasoning + answer.text}
        else:
            reasoning = answer.reasoning or None
            message = {"role": "assistant", "content": answer.text, "refusal": None}
            content = {"message": {**message, "reasoning_content": reasoning, "reasoning": reasoning}}
        return {"index": index, **content, "logprobs": None, "finish_reason": finish(answer.finish_reason)}
