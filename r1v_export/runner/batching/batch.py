"""Requests that are answered together: what our own loop and a library's loop have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Generic, NamedTuple, TypeVar

from r1v_export.errors import R1VError
from r1v_export.generation import FinishReason, Sampling
from r1v_export.runner.answer import AnswerStream, TokenEvent
from r1v_export.runner.encoded_prompt import EncodedPrompt


@dataclass
class BatchCounters:
    """What has happened since a batch was opened; as in `BatchingStats`."""

    prompt_tokens: int = 0
    reused_tokens: int = 0
    generated_tokens: int = 0
    prefix_hits: int = 0
    prefix_misses: int = 0
    preempted: int = 0
    draft_tokens: int = 0
    accepted_tokens: int = 0
    rows_per_step: Counter[int] = field(default_factory=Counter)


class CacheUsage(NamedTuple):
    """A key-value cache now."""

    rows: int = 0
    kept_rows: int = 0
    cache_bytes: int = 0


class RequestState:
    """A request that is being answered; `stream` is its answer so far."""

    def __init__(self, stream: AnswerStream) -> None:
        self.stream = stream
        self.failed = False

    @property
    def done(self) -> bool:
        """Whether the answer has ended, or an error took its place."""
        return self.failed or self.stream.done


State = TypeVar("State", bound=RequestState)


class Batch(ABC, Generic[State]):
    """Requests that join and leave between steps. Used by one thread."""

    uncounted: ClassVar[frozenset[str]] = frozenset()
    """Fields of `BatchingStats` that it knows nothing of."""

    def __init__(self) -> None:
        self.counters = BatchCounters()

    @property
    @abstractmethod
    def running(self) -> Sequence[State]:
        """The requests that are being answered."""

    @abstractmethod
    def admit(self, prompt: EncodedPrompt, sampling: Sampling, stream: AnswerStream) -> State | None:
        """Begin to answer a request; None while there is no room.

        Raises:
            R1VError: the request can never be answered here.
        """

    @abstractmethod
    def step(self) -> list[tuple[State, TokenEvent | R1VError]]:
        """Go one step on with all requests. A request whose answer ends, or whose error comes, leaves."""

    def end(self, state: State, reason: FinishReason) -> TokenEvent:
        """End an answer with what it has; its last event."""
        event = state.stream.push(None, reason)
        self.drop(state)
        return event

    @abstractmethod
    def drop(self, state: State) -> None:
        """Free what a request holds, whether it is done or not."""

    def cache_usage(self) -> CacheUsage:
        """What the key-value cache takes, where it is ours."""
        return CacheUsage()

    def close(self) -> None:
        """Drop all requests, and free what the batch holds itself."""
        for state in [*self.running]:
            self.drop(state)

    def __enter__(self) -> Batch[State]:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
