"""A request that was submitted to a batching runner, as its caller sees it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from queue import SimpleQueue

from r1v_export.errors import R1VError, UsageError
from r1v_export.generation import FinishReason
from r1v_export.log_event import log_event
from r1v_export.runner.answer import Answer, TokenEvent

_LOG = logging.getLogger(__name__)

Deliver = Callable[[TokenEvent | R1VError], None]
"""Takes a request's events in order; the last one has an `answer`, or is an error instead of an event."""


class Submission:
    """One request on its way. Made by `BatchingRunner.submit`; safe to use from any thread.

    Iterating waits for the events and raises the request's error. A caller that gave `deliver` gets them there instead.

    Args:
        request_id: names the request in logs.
        deliver: where its events go; None keeps them for iterating.
        wake: called when the request is cancelled.
    """

    def __init__(self, request_id: str, deliver: Deliver | None, wake: Callable[[], None]) -> None:
        self.request_id = request_id
        self._deliver, self._wake = deliver, wake
        self._events: SimpleQueue[TokenEvent | R1VError] = SimpleQueue()
        self._over = threading.Event()
        self._given_up: FinishReason | None = None
        self._last: Answer | R1VError | None = None

    @property
    def done(self) -> bool:
        """Whether the answer has ended, or an error took its place."""
        return self._over.is_set()

    @property
    def given_up(self) -> FinishReason | None:
        """Why the request is to end although its answer has not: "cancelled" or "deadline"."""
        return self._given_up

    def cancel(self) -> None:
        """End the answer with what it has: its last event comes soon, with the finish reason "cancelled".

        Its row and its place in the queue are free from the next decoder step on. May be called again.
        """
        self.give_up("cancelled")

    def give_up(self, reason: FinishReason) -> None:
        """End the answer with what it has, for this reason."""
        if self._given_up is None and not self.done:
            self._given_up = reason
            self._wake()

    def __iter__(self) -> Iterator[TokenEvent]:
        """Yield the events as they come.

        Raises:
            UsageError: the caller takes events with `deliver`.
            InputError: the request cannot be used.
            GraphError: a stage gives numbers that are not finite, or fails.
        """
        if self._deliver is not None:
            fix = "read them there, or submit the request without `deliver`"
            raise UsageError("The events of this request go to `deliver`.", where=self.request_id, fix=fix)
        while True:
            event = self._events.get()
            if isinstance(event, R1VError):
                raise event
            yield event
            if event.answer is not None:
                return

    def result(self, timeout: float | None = None) -> Answer:
        """Wait for the whole answer.

        Args:
            timeout: seconds to wait; None waits for ever.

        Raises:
            TimeoutError: the answer has not ended by then; it goes on.
            R1VError: the request's error.
        """
        if not self._over.wait(timeout):
            raise TimeoutError(f"request {self.request_id} has not ended within {timeout} s")
        if isinstance(self._last, R1VError):
            raise self._last
        assert self._last is not None
        return self._last

    def push(self, event: TokenEvent | R1VError) -> None:
        """Give an event to the caller. A `deliver` that raises has its request cancelled."""
        if self._deliver is None:
            self._end_with(event)  # first: whoever takes the last event finds the answer
            self._events.put(event)
        else:
            try:
                self._deliver(event)
            except Exception as error:
                message = "request %(request_id)s: its `deliver` raised %(error)s, so it is cancelled"
                log_event(_LOG, logging.WARNING, message, request_id=self.request_id, error=repr(error))
                self.cancel()
            self._end_with(event)

    def _end_with(self, event: TokenEvent | R1VError) -> None:
        """Keep the answer or error that the last event has, and tell those who wait for it."""
        last = event if isinstance(event, R1VError) else event.answer
        if last is not None:
            self._last = last
            self._over.set()
