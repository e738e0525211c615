"""How an answer is shown: what is said of one without text, and where the reasoning ends."""

from __future__ import annotations

import sys

import pytest

from r1v_export.cli.answers import end_remark, stream
from r1v_export.generation import FinishReason
from r1v_export.runner.answer import Answer, Timings, TokenEvent


def answer(text: str, *, reasoning: str = "", tokens: int = 1, finish_reason: FinishReason = "stop") -> Answer:
    reasoning_tokens = 2 if reasoning else 0
    token_ids = tuple(range(tokens + reasoning_tokens))
    return Answer(reasoning, text, True, token_ids, finish_reason, 9, 0, Timings(), reasoning_tokens)


@pytest.mark.parametrize(
    ("tokens", "finish_reason", "said"),
    [
        (1, "stop", "its only token is a special one"),
        (3, "stop", "its 3 tokens are special ones"),
        (4, "length", "cut off after 4 tokens by --max-new-tokens; the answer has no text: its 4 tokens"),
    ],
)
def test_an_answer_of_special_tokens_alone_is_said_to_have_no_text(
    capsys: pytest.CaptureFixture[str], tokens: int, finish_reason: FinishReason, said: str
) -> None:
    silent = answer("", tokens=tokens, finish_reason=finish_reason)
    stream([TokenEvent(0, 0, "", "", silent)], answer_only=False)
    printed = capsys.readouterr()
    assert printed.out == "\n"
    assert said in printed.err
    assert "--format json" in printed.err


def test_tokens_of_the_reasoning_are_not_counted_as_those_of_the_answer() -> None:
    assert "its 3 tokens are" in str(end_remark(answer("", reasoning="So.", tokens=3)))


def test_an_answer_with_text_needs_no_remark() -> None:
    assert end_remark(answer("5")) is None


def test_a_reasoning_that_is_complete_is_closed_where_no_text_follows_it(capsys: pytest.CaptureFixture[str]) -> None:
    silent = answer("", reasoning="So.")
    stream([TokenEvent(0, 0, "So.", ""), TokenEvent(0, 1, "", "", silent)], answer_only=False)
    assert capsys.readouterr().out == "<think>\nSo.\n</think>\n"


@pytest.mark.parametrize(("no_color", "tags"), [("1", True), ("", False)])
def test_a_terminal_without_colors_sees_where_the_reasoning_ends(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, no_color: str, tags: bool
) -> None:
    monkeypatch.setenv("NO_COLOR", no_color)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    said = answer("5", reasoning="So.")
    stream([TokenEvent(0, 0, "So.", ""), TokenEvent(0, 1, "", "5", said)], answer_only=False)
    assert ("<think>\nSo.\n</think>\n5\n" in capsys.readouterr().out) == tags
