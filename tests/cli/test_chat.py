"""Conversations on a terminal: what a turn that fails or is stopped leaves behind."""

from __future__ import annotations

import builtins
import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from PIL import Image

from r1v_export.cli import chat
from r1v_export.cli.logs import PACKAGE, JsonFormatter, TerminalHandler
from r1v_export.errors import InputError, UsageError
from r1v_export.runner.answer import TokenEvent


@pytest.mark.parametrize("end", [InputError("too long"), KeyboardInterrupt()], ids=["an error", "Ctrl-C"])
@pytest.mark.parametrize("when", ["asked", "answering"])
def test_images_of_a_turn_that_ends_early_are_shown_with_the_next_question(
    monkeypatch: pytest.MonkeyPatch, end: BaseException, when: str
) -> None:
    first, second = Image.new("RGB", (1, 1)), Image.new("RGB", (2, 2))
    asked: list[tuple[str, list[Image.Image]]] = []

    def ask(question: str, images: list[Image.Image]) -> Iterator[TokenEvent]:
        asked.append((question, list(images)))
        if len(asked) == 1 and when == "asked":
            raise end
        return answer(fails=len(asked) == 1)

    def answer(fails: bool) -> Iterator[TokenEvent]:
        if fails:
            raise end
        yield from ()

    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(chat, "_prompted", lambda: iter(["/image b.png", "one", "two", "three"]))
    chat.chat(ask, lambda path: second, list, [first])

    assert asked == [("one", [first, second]), ("two", [first, second]), ("three", [])]


def typed(monkeypatch: pytest.MonkeyPatch, *lines: str | type[BaseException]) -> None:
    """Let `input` give lines, or raise."""
    left = list(lines)

    def give(prompt: str = "") -> str:
        line = left.pop(0)
        if not isinstance(line, str):
            raise line
        return line

    monkeypatch.setattr(builtins, "input", give)


def test_ctrl_c_at_the_prompt_says_how_to_end_and_only_twice_ends(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    typed(monkeypatch, KeyboardInterrupt, "one", KeyboardInterrupt, "two", EOFError)
    assert list(chat._prompted()) == ["one", "two"]
    assert capsys.readouterr().err.count("Ctrl-C once more") == 2
    typed(monkeypatch, KeyboardInterrupt, KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        list(chat._prompted())


@pytest.mark.parametrize(("line", "what"), [("/image", "needs the path"), ("/images a.png", "Unknown conversation")])
def test_a_command_without_its_path_is_not_called_unknown(line: str, what: str) -> None:
    with pytest.raises(UsageError, match=what):
        chat.image_command(line)


@contextmanager
def json_log() -> Iterator[None]:
    """As with `-v --log-format json`."""
    handler = TerminalHandler()
    handler.setFormatter(JsonFormatter())
    PACKAGE.addHandler(handler)
    PACKAGE.setLevel(logging.INFO)
    yield
    PACKAGE.setLevel(logging.NOTSET)
    PACKAGE.removeHandler(handler)


def test_next_to_a_json_log_a_conversation_writes_nothing_else_to_stderr(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def ask(question: str, images: list[Image.Image]) -> Iterator[TokenEvent]:
        raise KeyboardInterrupt if question == "stop" else InputError("too long", fix="a shorter one")

    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    typed(monkeypatch, "one", KeyboardInterrupt, "stop", EOFError)
    with json_log():
        chat.chat(ask, lambda path: Image.new("RGB", (1, 1)), list, [])
    shown = capsys.readouterr()
    events = [json.loads(line) for line in shown.err.splitlines()]
    assert [event["level"] for event in events] == ["info", "error", "info", "info"]
    assert [event["message"][:9] for event in events] == ["/image PA", "too long", "Ctrl-C on", "stopped; "]
    assert events[1]["error"]["fix"] == "a shorter one"
    assert shown.out == ""


def test_an_error_of_a_turn_fits_the_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    for stream in (sys.stdin, sys.stderr):
        monkeypatch.setattr(stream, "isatty", lambda: True, raising=False)
    typed(monkeypatch, "/foo", EOFError)
    chat.chat(lambda *_: iter(()), lambda path: Image.new("RGB", (1, 1)), list, [])
    lines = capsys.readouterr().err.splitlines()
    assert any(line.endswith("error: Unknown conversation command.") for line in lines)
    assert max(map(len, lines)) <= 60
