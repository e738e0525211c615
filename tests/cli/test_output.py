"""What commands print."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from r1v_export.cli.answers import stream
from r1v_export.cli.output import table, wrapped_table
from r1v_export.runner.answer import Answer, Timings, TokenEvent


def test_columns_line_up_and_numbers_go_to_the_right() -> None:
    assert table([("a", 1), ("long", 22)], ("name", "count")) == "name  count\na         1\nlong     22"


def test_no_line_ends_in_spaces() -> None:
    assert table([("a", "x"), ("b", "")]) == "a  x\nb"


def test_the_last_column_wraps_next_to_the_others_or_below_them(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [("name", "a word, more words, and as many again as fit"), ("", "the-end"), ("x", "")]
    monkeypatch.setenv("COLUMNS", "40")
    assert wrapped_table(rows) == ("name  a word, more words, and as many\n      again as fit\n      the-end\nx")
    monkeypatch.setenv("COLUMNS", "36")
    assert wrapped_table(rows) == ("name\n    a word, more words, and as many\n    again as fit\n    the-end\nx")


def events(*pieces: tuple[str, str]) -> Iterator[TokenEvent]:
    """Pieces of (reasoning, text), and the end."""
    yield from (TokenEvent(0, 1, *piece) for piece in pieces)
    yield TokenEvent(0, 2, "", "", Answer("", "", True, (), "stop", 0, 0, Timings()))


STREAMED = (("I see ", ""), ("two", ""), ("", "2"))


def test_a_pipe_gets_the_reasoning_in_tags(capsys: pytest.CaptureFixture[str]) -> None:
    stream(events(*STREAMED), answer_only=False)
    assert capsys.readouterr().out == "<think>\nI see two\n</think>\n2\n"


def test_a_terminal_gets_the_reasoning_dimmed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setattr("click._compat.isatty", lambda stream: True)
    stream(events(*STREAMED), answer_only=False)
    assert capsys.readouterr().out == "\x1b[2mI see \x1b[0m\x1b[2mtwo\x1b[0m\n\n2\n"


def test_an_answer_cannot_command_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    stream(events(("", "a\x1b]0;title\x07b\n\u009b2Jc\td")), answer_only=False)
    assert capsys.readouterr().out == "a␛]0;title␇b\n\ufffd2Jc\td\n"
