"""Requests that a library answers together, whose own loop batches them."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import replace

from r1v_export.errors import GraphError, R1VError
from r1v_export.generation import FinishReason, Generation, Generator, Sampling
from r1v_export.runner.answer import AnswerStream, TokenEvent
from r1v_export.runner.batching.batch import Batch, RequestState
from r1v_export.runner.encoded_prompt import EncodedPrompt
from r1v_export.runner.kv_cache import new_token_budget


class OpenState(RequestState):
    """A request that the library works on. Its clock starts here: `prefill_ms` is the time to the first token, waiting
    for a place in the library's batch included."""

    def __init__(self, stream: AnswerStream, generation: Generation) -> None:
        super().__init__(stream)
        self.generation = generation
        self._clock = time.perf_counter()

    def measure(self) -> None:
        """Count the time since the last tokens."""
        now, timings = time.perf_counter(), self.stream.timings
        passed_ms = (now - self._clock) * 1000
        if self.stream.token_ids:
            timings.decode_ms += passed_ms
        else:
            timings.prefill_ms += passed_ms
        self._clock = now


class GeneratorBatch(Batch[OpenState]):
    """Requests that are open in a library at the same time.

    Args:
        generator: the language model.
        max_positions: tokens of a prompt and its answer, at most.
        max_open: requests that are open at a time.
    """

    uncounted = frozenset(
        {"rows", "kept_rows", "cache_bytes", "cache_budget_bytes", "rows_per_step"}
        | {"reused_tokens", "prefix_hits", "prefix_misses", "preempted", "draft_tokens", "accepted_tokens"}
    )

    def __init__(self, generator: Generator, max_positions: int, max_open: int) -> None:
        super().__init__()
        self.generator, self.max_positions, self.max_open = generator, max_positions, max_open
        self._open: list[OpenState] = []

    @property
    def running(self) -> Sequence[OpenState]:
        return self._open

    def admit(self, prompt: EncodedPrompt, sampling: Sampling, stream: AnswerStream) -> OpenState | None:
        if len(self._open) >= self.max_open:
            return None
        max_new_tokens = new_token_budget(len(prompt.token_ids), sampling.max_new_tokens, self.max_positions)
        sampling = replace(sampling, max_new_tokens=max_new_tokens)
        generation = self.generator.generate(
            prompt.token_ids, prompt.images, sampling, stream.stop_ids, threading.Event()
        )
        self.counters.prompt_tokens += len(prompt.token_ids)
        state = OpenState(stream, generation)
        self._open.append(state)
        return state

    def step(self) -> list[tuple[OpenState, TokenEvent | R1VError]]:
        """Give each request the tokens that came for it; there may be none, after a moment."""
        events: list[tuple[OpenState, TokenEvent | R1VError]] = []
        for state in [*self._open]:
            try:
                events += [(state, event) for event in self._next(state)]
            except R1VError as error:
                state.failed = True
                events.append((state, error))
            if state.done:
                self.drop(state)
        return events

    def drop(self, state: OpenState) -> None:
        if state in self._open:
            self._open.remove(state)
            state.generation.close()

    def _next(self, state: OpenState) -> list[TokenEvent]:
        generated = next(state.generation, None)
        if generated is None:
            raise GraphError("The library ended an answer without saying why.", where="decoder")
        state.measure()
        self.counters.generated_tokens += len(generated.token_ids)
        tokens: list[int | None] = [*generated.token_ids]
        if generated.finish_reason is not None and not tokens:
            tokens = [None]
        events = []
        for index, token in enumerate(tokens, start=1):
            reason: FinishReason | None = generated.finish_reason if index == len(tokens) else None
            events.append(state.stream.push(token, reason))
            if state.stream.done:
                break
        return events
