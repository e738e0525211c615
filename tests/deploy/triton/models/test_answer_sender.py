"""Coalescing, over a stand-in of Triton's response senders that takes its time."""

from __future__ import annotations

import json
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from r1v_export.deploy.triton.models.answer_sender import AnswerSender, OpenAnswer
from r1v_export.deploy.triton.models.python_backend import FINAL
from r1v_export.errors import GraphError
from r1v_export.runner.answer import Answer, Timings, TokenEvent
from tests.deploy.triton.models.stand_in import InferenceResponse

pytestmark = pytest.mark.usefixtures("backend")

ANSWER = Answer("", "abc", True, (1, 2, 3), "stop", 7, 0, Timings())


class Sender:
    """Keeps what it is sent; sending waits for `ready`."""

    def __init__(self, ready: threading.Event) -> None:
        self.ready, self.sent, self.gone = ready, [], False
        self.sending, self.ended = threading.Event(), threading.Event()

    def is_cancelled(self) -> bool:
        return self.gone

    def send(self, response: SimpleNamespace, flags: int) -> None:
        self.sending.set()
        assert self.ready.wait(10)
        self.sent.append(response)
        if flags == FINAL:
            self.ended.set()


@pytest.fixture
def sends():
    sender = AnswerSender(lambda ended: None)
    yield sender
    sender.close()


def said(response: InferenceResponse, *names: str) -> Any:
    """Outputs of a response."""
    values = tuple(response.outputs[name].tolist() for name in names)
    return values[0] if len(names) == 1 else values


def token(token_id: int, text: str, answer: Answer | None = None) -> TokenEvent:
    return TokenEvent(0, token_id, "", text, answer)


def test_a_server_that_keeps_up_gets_token_by_token(sends):
    ready = threading.Event()
    ready.set()
    sender = Sender(ready)
    answer = OpenAnswer(sender, sends)
    for index, last in enumerate((None, None, ANSWER)):
        sender.sending.clear()
        answer.deliver(token(index + 1, "abc"[index], last))
        assert sender.sending.wait(10)
    assert sender.ended.wait(10)
    assert [said(response, "token_ids") for response in sender.sent] == [[1], [2], [3]]
    assert ["usage" in response.outputs for response in sender.sent] == [False, False, True]


def test_what_gathers_while_a_response_is_sent_is_one_response(sends):
    sender = Sender(threading.Event())
    answer = OpenAnswer(sender, sends)
    answer.deliver(token(1, "a"))
    assert sender.sending.wait(10)
    answer.deliver(token(2, "b"))
    answer.deliver(token(3, "c", ANSWER))
    sender.ready.set()
    assert sender.ended.wait(10)
    first, last = sender.sent
    assert said(first, "token_ids", "text_output") == ([1], [b"a"])
    assert said(last, "token_ids", "text_output", "finish_reason") == ([2, 3], [b"bc"], [b"stop"])
    assert json.loads(said(last, "usage")[0])["completion_tokens"] == 3


def test_an_answer_s_first_token_goes_before_what_others_wait_with(sends):
    order: list[str] = []
    senders = {name: Sender(threading.Event()) for name in ("old", "other", "new")}
    for name, sender in senders.items():
        send = sender.send
        sender.send = lambda response, flags, name=name, send=send: (order.append(name), send(response, flags))
    answers = {name: OpenAnswer(sender, sends) for name, sender in senders.items()}
    for sender in senders.values():
        sender.ready = senders["old"].ready
    answers["old"].deliver(token(1, "a"))
    assert senders["old"].sending.wait(10)
    answers["other"].deliver(token(1, "a", ANSWER))
    answers["old"].deliver(token(2, "b", ANSWER))
    answers["new"].deliver(token(1, "a", ANSWER))
    senders["old"].ready.set()
    assert all(sender.ended.wait(10) for sender in senders.values())
    assert order == ["old", "new", "other", "old"]


def test_an_error_comes_behind_the_tokens_before_it(sends):
    sender = Sender(threading.Event())
    answer = OpenAnswer(sender, sends)
    answer.deliver(token(1, "a"))
    assert sender.sending.wait(10)
    answer.deliver(token(2, "b"))
    answer.deliver(GraphError("The engine failed."))
    sender.ready.set()
    assert sender.ended.wait(10)
    first, second, error = sender.sent
    assert (said(first, "token_ids"), said(second, "token_ids")) == ([1], [2])
    assert "The engine failed." in error.error.text


def test_a_client_that_has_gone_has_its_answer_cancelled(sends):
    ready = threading.Event()
    ready.set()
    sender, cancelled = Sender(ready), threading.Event()
    sender.gone = True
    answer = OpenAnswer(sender, sends)
    answer.cancel = cancelled.set
    answer.deliver(token(1, "a"))
    assert cancelled.wait(10)


def test_a_response_that_cannot_be_sent_ends_its_answer_and_no_other(sends):
    ready = threading.Event()
    ready.set()
    broken, sound, cancelled = Sender(ready), Sender(ready), threading.Event()

    def fail(response: SimpleNamespace, flags: int) -> None:
        raise RuntimeError("the request is gone")

    broken.send = fail
    answer = OpenAnswer(broken, sends)
    answer.cancel = cancelled.set
    answer.deliver(token(1, "a"))
    assert cancelled.wait(10)
    OpenAnswer(sound, sends).deliver(token(1, "a", ANSWER))
    assert sound.ended.wait(10)


def test_closing_sends_what_is_left():
    sends, sender = AnswerSender(lambda ended: None), Sender(threading.Event())
    sender.ready.set()
    OpenAnswer(sender, sends).deliver(token(1, "a", ANSWER))
    sends.close()
    assert [said(response, "token_ids") for response in sender.sent] == [[1]]
