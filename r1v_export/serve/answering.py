"""The asynchronous side of a batching runner: a request's events awaited, its limits applied, its times counted."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from http import HTTPStatus
from typing import Any

from r1v_export.count import Count
from r1v_export.errors import R1VError
from r1v_export.generation import Sampling
from r1v_export.processing.generation_config import default_sampling
from r1v_export.runner.answer import Answer, TokenEvent
from r1v_export.runner.batching.submission import Deliver, Submission
from r1v_export.runner.prompt_encoder import Request
from r1v_export.serve.backend import Backend
from r1v_export.serve.errors import ServeError, serve_error, too_long
from r1v_export.serve.metrics import ServerMetrics
from r1v_export.serve.protocol import SamplingFields
from r1v_export.serve.settings import ServerSettings

PROBE_FRESH_SECONDS = 30.0
"""A token that is not older shows that the server works."""

_PROBE = Request.ask("Hi", think=False)


class Answering:
    """Answers requests for the routes.

    Args:
        backend: takes the requests.
        generation_config: of the checkpoint, for what a request does not say.
        max_positions: tokens of a prompt and its answer.
    """

    def __init__(
        self,
        backend: Backend,
        generation_config: Mapping[str, Any],
        max_positions: int,
        settings: ServerSettings,
        metrics: ServerMetrics,
    ) -> None:
        self.backend, self.settings, self.metrics = backend, settings, metrics
        self._default = replace(default_sampling(generation_config), max_new_tokens=max_positions, seed=None)
        self._last_token = float("-inf")
        self._probing = asyncio.Lock()

    def samplings(self, fields: SamplingFields) -> list[Sampling]:
        """How each of a request's answers is sampled: what it says, in place of the checkpoint's own.

        Raises:
            ServeError: more tokens or answers than the server allows, or values that exclude each other.
        """
        limit = self.settings.limits.new_tokens
        asked = fields.token_limit
        if limit is not None and (asked or 0) > limit:
            message = (
                f"At most {Count(limit, 'token')} of an answer are allowed on this server, and {asked} were "
                "asked for. Ask for fewer."
            )
            raise ServeError(HTTPStatus.BAD_REQUEST, message, "too_many_tokens", fields.token_limit_field)
        most = self.backend.capacity
        if most is not None and fields.n > most:
            message = (
                f"{Count(fields.n, 'answer')} are more than this server takes at a time: {most}, running and waiting. "
                "Ask for fewer."
            )
            raise ServeError(HTTPStatus.BAD_REQUEST, message, "too_many_answers", "n")
        default = self._default if limit is None else replace(self._default, max_new_tokens=limit)
        try:
            sampling = replace(default, **fields.changes)
        except R1VError as error:
            raise serve_error(error) from error
        seed = sampling.seed
        return [sampling if seed is None else replace(sampling, seed=seed + index) for index in range(fields.n)]

    async def answers(
        self, request: Request, samplings: Sequence[Sampling], request_id: str, client: str
    ) -> list[Answer]:
        """Every answer to a request, whole."""
        finished: dict[int, Answer] = {}
        async with aclosing(self.events(request, samplings, request_id, client)) as events:
            async for event in events:
                if event.answer is not None:
                    finished[event.request] = event.answer
        return [finished[index] for index in range(len(samplings))]

    async def events(
        self, request: Request, samplings: Sequence[Sampling], request_id: str, client: str
    ) -> AsyncGenerator[TokenEvent, None]:
        """The events of a request's answers as they come; `event.request` is the answer's index.

        Closing the iterator cancels what is unfinished.

        Raises:
            ServeError: the request is refused, fails, or takes longer than the server allows.
        """
        start = time.monotonic()
        loop = asyncio.get_running_loop()
        queue: asyncio.Queue[tuple[int, TokenEvent | R1VError]] = asyncio.Queue()

        def deliver_as(index: int) -> Deliver:
            return lambda event: _put(loop, queue, index, event)

        submissions: list[Submission] = []
        try:
            for index, sampling in enumerate(samplings):
                submissions.append(
                    self.backend.submit(
                        request,
                        sampling,
                        deliver=deliver_as(index),
                        deadline=start + self.settings.limits.seconds,
                        request_id=f"{request_id}-{index}" if index else request_id,
                        client=client,
                    )
                )
            async for event in self._timed(queue, len(samplings), start):
                yield event
        except R1VError as error:
            failure = serve_error(error)
            if failure.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
                self._last_token = float("-inf")  # so that /ready does not go by a token from before
            raise failure from error
        finally:
            for submission in submissions:
                submission.cancel()

    async def _timed(
        self, queue: asyncio.Queue[tuple[int, TokenEvent | R1VError]], answers: int, start: float
    ) -> AsyncGenerator[TokenEvent, None]:
        latest: dict[int, float] = {}
        while answers:
            index, event = await queue.get()
            if isinstance(event, R1VError):
                raise event
            now = time.monotonic()
            if event.token_id is not None:
                self._last_token = now
                histogram = self.metrics.inter_token if index in latest else self.metrics.first_token
                histogram.observe(now - latest.get(index, start))
                latest[index] = now
            if event.answer is not None:
                if event.answer.finish_reason == "deadline":
                    raise too_long(self.settings.limits.seconds)
                self.metrics.seconds.observe(now - start)
                answers -= 1
            yield replace(event, request=index)

    async def why_not_ready(self) -> str | None:
        """Why no real token was produced just now, by a request within `PROBE_FRESH_SECONDS` or by a probe; None if one
        was."""
        async with self._probing:
            recent = time.monotonic() - PROBE_FRESH_SECONDS
            if self._last_token > max(recent, self.backend.lost_at):
                return None
            try:
                (answer,) = await self.answers(_PROBE, [Sampling(max_new_tokens=1)], "probe", "probe")
            except ServeError as failure:
                return failure.message
            return None if answer.token_ids else "The answer has no token."


def _put(
    loop: asyncio.AbstractEventLoop,
    queue: asyncio.Queue[tuple[int, TokenEvent | R1VError]],
    index: int,
    event: TokenEvent | R1VError,
) -> None:
    """Hand an event from the runner's thread to the server's."""
    loop.call_soon_threadsafe(queue.put_nowait, (index, event))
