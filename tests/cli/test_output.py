"""What commands print."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from r1v_export.cli.answers import stream
from r1v_export.cli.output import print_summary, table, wrapped, wrapped_table
from r1v_export.runner.answer import Answer, Timings, TokenEvent


def test_columns_line_up_and_numbers_go_to_the_right() -> None:
    assert table([("a", 1), ("long", 22)], ("name", "count")) == "name  count\na         1\nlong     22"


def test_no_line_ends_in_spaces() -> None:
    assert table([("a", "x"), ("b", "")]) == "a  x\nb"


WIDE = [("language_model.model.layers.0 and 3 like it", "1.33 M", "memory"), ("all", "5.57 M", "compute")]


def test_a_table_that_is_too_wide_has_its_first_column_above_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "61")
    header = ("layer", "FLOP", "bound by")
    assert table(WIDE, header).split("\n")[1] == "language_model.model.layers.0 and 3 like it  1.33 M  memory"
    for columns, name in (("58", WIDE[0][0]), ("40", "language_model.model.layers.0 and 3 like\nit")):
        monkeypatch.setenv("COLUMNS", columns)
        assert table(WIDE, header) == (
            f"layer\n      FLOP  bound by\n{name}\n    1.33 M  memory\nall\n    5.57 M  compute"
        )


def test_values_that_do_not_fit_next_to_each_other_have_a_line_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "17")
    assert table([("a", "1.33 M", "memory"), ("b", "", "2")], ("layer", "FLOP", "bound by")) == (
        "layer\na\n    FLOP\n    1.33 M\n    bound by\n    memory\nb\n    bound by  2"
    )


def test_a_sentence_wraps_and_a_path_in_it_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    assert wrapped("written to /a/long/path/of/files: 3 files") == "written to\n/a/long/path/of/files:\n3 files"


def test_the_last_column_wraps_next_to_the_others_or_below_them(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [("name", "a word, more words, and as many again as fit"), ("", "the-end"), ("x", "")]
    monkeypatch.setenv("COLUMNS", "40")
    assert wrapped_table(rows) == ("name  a word, more words, and as many\n      again as fit\n      the-end\nx")
    monkeypatch.setenv("COLUMNS", "36")
    assert wrapped_table(rows) == ("name\n    a word, more words, and as many\n    again as fit\n    the-end\nx")


def on_terminal(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", str(columns))


def test_the_line_that_ends_a_command_fits_a_terminal_and_the_command_in_it_stays_whole(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    said = ("a: every key with its default; build it with:", "r1v-export build --config a -o FOLDER")
    print_summary(*said)
    assert capsys.readouterr().out == f"{said[0]} {said[1]}\n", "a pipe's lines are not broken"
    on_terminal(84, monkeypatch)
    print_summary(*said)
    assert capsys.readouterr().out == f"{said[0]} {said[1]}\n"
    on_terminal(30, monkeypatch)
    print_summary(*said)
    assert capsys.readouterr().out == f"a: every key with its default;\n  build it with:\n  {said[1]}\n"


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
