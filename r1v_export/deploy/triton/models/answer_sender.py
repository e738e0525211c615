"""Responses of `r1v_llm`, sent by a thread of their own: decoding does not wait until Triton has taken them."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from r1v_export.deploy.triton.models import python_backend as triton
from r1v_export.deploy.triton.sampling_parameters import logprobs_json
from r1v_export.deploy.triton.tensors import FINISH_REASON, LOGPROBS, REASONING_OUTPUT, TEXT_OUTPUT, TOKEN_IDS, USAGE
from r1v_export.errors import R1VError
from r1v_export.runner.answer import TokenEvent
from r1v_export.serve.responses import usage

_LOG = logging.getLogger(__name__)

REST_SHARE = 3
"""How long the sender rests after a response, in times that sending it took, while several answers are open. A response
passes through three processes; without rests, sending would take the processors away from decoding."""
MAX_REST_SECONDS = 0.004


class OpenAnswer:
    """One request's answer on its way to Triton.

    Args:
        sender: Triton's, of the request.
        sends: the thread that sends.
    """

    def __init__(self, sender: Any, sends: AnswerSender) -> None:
        self.sender, self._sends = sender, sends
        self.begun = False
        self.gathered: list[TokenEvent | R1VError] = []
        self.cancel: Callable[[], None] = lambda: None
        """What a client's going away calls."""

    def deliver(self, event: TokenEvent | R1VError) -> None:
        """Have an event sent, with others that come before it is its turn. Returns at once."""
        self._sends.add(self, event)

    def send(self, events: Sequence[TokenEvent | R1VError]) -> None:
        """Send events as one response; an error that follows them as another."""
        tokens = [event for event in events if isinstance(event, TokenEvent)]
        error = next((event for event in events if isinstance(event, R1VError)), None)
        if tokens:
            ends = tokens[-1].answer is not None
            if not ends and self.sender.is_cancelled():
                self.cancel()
            self.sender.send(_response(tokens), flags=triton.FINAL if ends else 0)
        if error is not None:
            self.sender.send(triton.error_response(error), flags=triton.FINAL)


class AnswerSender:
    """Sends what the loop generates. A response has what has gathered for its request since the one before: one token
    where a single answer is open and Triton keeps up, several where it does not.

    Args:
        on_sent: called after each response with whether it was a request's last.
    """

    def __init__(self, on_sent: Callable[[bool], None]) -> None:
        self._on_sent = on_sent
        self._changed = threading.Condition()
        self._waiting: deque[OpenAnswer] = deque()
        self._open = 0
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="r1v-send", daemon=True)
        self._thread.start()

    def add(self, answer: OpenAnswer, event: TokenEvent | R1VError) -> None:
        """Gather an event; any thread may."""
        with self._changed:
            if not answer.begun:
                self._open += 1
                self._waiting.appendleft(answer)
                answer.begun = True
            elif not answer.gathered:
                self._waiting.append(answer)
            answer.gathered.append(event)
            self._changed.notify()

    def close(self) -> None:
        """Send what is left, without rests, and end the thread."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while (following := self._next()) is not None:
            answer, events = following
            last = events[-1]
            ends = isinstance(last, R1VError) or last.answer is not None
            start = time.perf_counter()
            try:
                answer.send(events)
                self._on_sent(ends)
            except Exception:
                _LOG.exception("a response could not be sent, so its answer is cancelled")
                answer.cancel()
            took = time.perf_counter() - start
            with self._changed:
                self._open -= ends
                rests = self._open > 1 and not self._closing
            if rests:
                time.sleep(min(REST_SHARE * took, MAX_REST_SECONDS))

    def _next(self) -> tuple[OpenAnswer, list[TokenEvent | R1VError]] | None:
        """The answer that has waited the longest, and its events; None once the sender is closed."""
        with self._changed:
            while not self._waiting:
                if self._closing:
                    return None
                self._changed.wait()
            answer = self._waiting.popleft()
            events, answer.gathered = answer.gathered, []
            return answer, events


def _response(events: Sequence[TokenEvent]) -> Any:
    outputs: dict[str, np.ndarray | str | int] = {
        TOKEN_IDS: np.array([event.token_id for event in events if event.token_id is not None], dtype=np.int64),
        REASONING_OUTPUT: "".join(event.reasoning for event in events),
        TEXT_OUTPUT: "".join(event.text for event in events),
    }
    if any(event.logprobs is not None for event in events):
        outputs[LOGPROBS] = logprobs_json(events)
    answer = events[-1].answer
    if answer is not None:
        outputs |= {FINISH_REASON: answer.finish_reason, USAGE: json.dumps(usage([answer]))}
    return triton.response(**outputs)
