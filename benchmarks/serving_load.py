"""Clients who ask a server about images, all at a time, and what they saw of it.

Every token is one character (see serving_model.py), so the length of a piece of text is how many tokens came with it.
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any, Literal

import httpx
import numpy as np
from PIL import Image

Api = Literal["openai", "triton"]
Messages = list[dict[str, Any]]

LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=0)
"""A connection for each request: llama.cpp's server closes them after an answer without saying so."""
TIMEOUT_S = 600
IMAGE_SIZE = (224, 112)
QUESTION = "Which of the two halves of this image has more detail, and why?"
LONG = "An image is shown and then it is asked about. " * 16
"""What a first turn begins with, so that its prompt is long: 736 tokens."""


def image_part(number: int) -> dict[str, Any]:
    """An image of its own for each number: no server has seen it before."""
    width, height = IMAGE_SIZE
    pixels = np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return {
        "type": "image_url",
        "image_url": {"url": "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()},
    }


def first_turn(number: int, system: str = "You see.") -> Messages:
    parts = [image_part(number), {"type": "text", "text": QUESTION}]
    return [{"role": "system", "content": system}, {"role": "user", "content": parts}]


@dataclass
class Answer:
    """One answer as its client saw it, in seconds since it asked."""

    text: str = ""
    arrivals: list[float] = field(default_factory=list)
    """Of each token."""
    usage: dict[str, int] = field(default_factory=dict)


@dataclass
class Seen:
    """The answers of some clients."""

    answers: list[Answer]
    seconds: float

    def row(self) -> dict[str, float]:
        first = [answer.arrivals[0] for answer in self.answers]
        between = [gap for answer in self.answers for gap in np.diff(answer.arrivals)]
        return {
            "tokens_per_s": round(sum(len(answer.arrivals) for answer in self.answers) / self.seconds, 2),
            **{f"first_token_ms_p{rank}": _ms(first, rank) for rank in (50, 95, 99)},
            **{f"inter_token_ms_p{rank}": _ms(between, rank) for rank in (50, 95, 99)},
        }


def _ms(seconds: list[float], rank: int) -> float:
    return round(1000 * float(np.percentile(seconds, rank)), 2)


class Clients:
    """Clients of one server.

    Args:
        url: of the server.
        api: that it has.
        new_tokens: of every answer.
    """

    def __init__(self, url: str, api: Api, new_tokens: int) -> None:
        self.url, self.api, self.new_tokens = url, api, new_tokens
        self._images = iter(range(1_000_000))

    def load(self, clients: int, requests: int) -> Seen:
        """Let so many clients ask so often, each one after its last answer has ended."""
        asked = [[first_turn(next(self._images)) for _ in range(requests)] for _ in range(clients)]
        return asyncio.run(self._load(asked))

    async def _load(self, asked: list[list[Messages]]) -> Seen:
        async with httpx.AsyncClient(limits=LIMITS, timeout=TIMEOUT_S) as http:

            async def one(conversations: list[Messages]) -> list[Answer]:
                return [await self._ask(http, messages) for messages in conversations]

            start = time.perf_counter()
            answers = await asyncio.gather(*map(one, asked))
            return Seen([answer for each in answers for answer in each], time.perf_counter() - start)

    def two_turns(self) -> tuple[Answer, Answer]:
        """A long first turn, and a short second one behind its answer."""

        async def both() -> tuple[Answer, Answer]:
            async with httpx.AsyncClient(limits=LIMITS, timeout=TIMEOUT_S) as http:
                number = next(self._images)
                messages = first_turn(number, f"{number}. {LONG}")
                first = await self._ask(http, messages)
                follow = [{"role": "assistant", "content": first.text}, {"role": "user", "content": "And now?"}]
                return first, await self._ask(http, [*messages, *follow])

        return asyncio.run(both())

    async def _ask(self, http: httpx.AsyncClient, messages: Messages) -> Answer:
        path, body = self._request(messages)
        answer = Answer()
        start = time.perf_counter()
        async for event in _events(http, self.url + path, body):
            text, usage = self._read(event)
            answer.text += text
            answer.arrivals += [time.perf_counter() - start] * len(text)
            answer.usage = usage or answer.usage
        assert len(answer.text) == answer.usage["completion_tokens"] == self.new_tokens, (answer.text, answer.usage)
        return answer

    def _request(self, messages: Messages) -> tuple[str, dict[str, Any]]:
        if self.api == "openai":
            body = {"model": "m", "messages": messages, "stream": True, "stream_options": {"include_usage": True}}
            return "/v1/chat/completions", body | {"temperature": 0, "max_tokens": self.new_tokens, "ignore_eos": True}
        sampling = {"temperature": 0, "max_tokens": self.new_tokens, "ignore_eos": True}
        body = {"messages": json.dumps(messages), "sampling_parameters": json.dumps(sampling)}
        return "/v2/models/r1v/generate_stream", body

    def _read(self, event: dict[str, Any]) -> tuple[str, dict[str, int] | None]:
        """Text and usage of an event."""
        if self.api == "triton":
            return event["text_output"], json.loads(event["usage"]) if event.get("usage") else None
        text = "".join(choice["delta"].get("content") or "" for choice in event["choices"])
        return text, event.get("usage")


async def _events(http: httpx.AsyncClient, url: str, body: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
    async with http.stream("POST", url, json=body) as response:
        assert response.status_code == 200, await response.aread()
        async for line in response.aiter_lines():
            if line.startswith("data: ") and line != "data: [DONE]":
                yield json.loads(line.removeprefix("data: "))
