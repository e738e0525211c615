"""What the caller of a request finds, and when."""

from __future__ import annotations

from collections.abc import Callable
from queue import SimpleQueue

import pytest

from r1v_export.errors import InputError, R1VError
from r1v_export.runner.answer import CANCELLED_BEFORE_START, TokenEvent
from r1v_export.runner.batching.submission import Submission

LAST = TokenEvent(0, None, "", "", CANCELLED_BEFORE_START)


class AskedAtOnce(SimpleQueue):  # type: ignore[type-arg]
    """A queue whose reader asks for the answer before whoever puts an event in goes on."""

    def __init__(self, ask: Callable[[], object]) -> None:
        self.ask = ask

    def put(self, item: object, block: bool = True, timeout: float | None = None) -> None:
        self.ask()
        super().put(item)


@pytest.mark.parametrize("last", [LAST, InputError("The prompt is too long.")], ids=["answer", "error"])
def test_whoever_has_the_last_event_has_the_answer(last: TokenEvent | R1VError) -> None:
    submission = Submission("a", None, lambda: None)
    found: list[bool] = []
    submission._events = AskedAtOnce(lambda: found.append(submission.done))
    submission.push(TokenEvent(0, 7, "", "x"))
    submission.push(last)
    assert found == [False, True]


def test_an_answer_is_over_once_its_last_event_was_delivered() -> None:
    found: list[bool] = []
    submission = Submission("a", lambda _: found.append(submission.done), lambda: None)
    submission.push(LAST)
    assert found == [False]
    assert submission.result(0) is CANCELLED_BEFORE_START
