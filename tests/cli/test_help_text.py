"""Help of every command, in narrow and wide terminals: no word is broken, no line too long, one bracket of remarks."""

from __future__ import annotations

import re
from collections.abc import Iterator
from inspect import cleandoc

import click
import pytest

from r1v_export.cli import main
from r1v_export.cli.help_text import HelpFormatter

WIDTHS = [60, 80, 200]


def commands(command: click.Command, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Every command with the words that call it, groups included."""
    yield path, command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            found = command.get_command(context, name)
            assert found is not None
            yield from commands(found, (*path, name))


ALL = dict(commands(main.cli))


def shown_help(
    path: tuple[str, ...], width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> str:
    monkeypatch.setenv("COLUMNS", str(width))
    assert main.run([*path, "--help"]) == 0
    return capsys.readouterr().out


def paragraphs(command: click.Command) -> list[str]:
    """Of a command's help, without what its docstring tells developers."""
    return cleandoc((command.help or "").partition("\f")[0]).split("\n\n")


def preformatted(command: click.Command) -> list[str]:
    """Lines of a help text that are shown as they are: commands to copy, and lists."""
    return [line.strip() for block in paragraphs(command) if block.startswith("\b") for line in block.splitlines()]


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("path", ALL, ids=" ".join)
def test_no_word_is_broken_and_no_line_is_too_long(path, width, monkeypatch, capsys) -> None:
    command, text = ALL[path], shown_help(path, width, monkeypatch, capsys)
    words = " ".join(text.split())
    helps = [p.help or "" for p in command.params if isinstance(p, click.Option)]
    helps += [
        sub.short_help or ""
        for sub_path, sub in ALL.items()
        if len(sub_path) == len(path) + 1 and sub_path[: len(path)] == path
    ]
    helps += [text.removeprefix("\b") for text in paragraphs(command)]
    assert [text for text in helps if " ".join(text.partition(" [")[0].split()) not in words] == []
    kept = preformatted(command)
    assert [line for line in text.splitlines() if len(line) > min(width, 100) and line.strip() not in kept] == []


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("path", ALL, ids=" ".join)
def test_remarks_stand_in_one_bracket_and_ranges_in_words(path, width, monkeypatch, capsys) -> None:
    text = shown_help(path, width, monkeypatch, capsys)
    words = " ".join(text.split())
    assert re.findall(r"\] \[(?:default|\d|required)", words) == []
    assert re.findall(r"x>=|x<=|<=x", words) == []
    assert re.findall(r"\S  +\[|default:\n", text.partition("Options:")[2]) == []


def test_a_long_word_moves_long_options_to_lines_of_their_own() -> None:
    formatter = HelpFormatter(width=58)
    with formatter.section("Options"):
        formatter.write_dl([("--an-option-of-many-words NAME", "Such as " + "x" * 40 + "."), ("-o", "Short.")])
    assert formatter.getvalue().splitlines() == [
        "Options:",
        "  --an-option-of-many-words NAME",
        "                 Such as",
        "                 " + "x" * 40 + ".",
        "  -o             Short.",
    ]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Runs.  [default: 5; 1 or more]", "Runs. [default: 5; 1 or more]"),
        ("Tiles. [default: 1]  [1 to 8]", "Tiles. [default: 1; 1 to 8]"),
        ("Folder.  [required]", "Folder. [required]"),
        ("Let <ref> [and <box>] through.", "Let <ref> [and <box>] through."),
    ],
)
def test_what_a_value_may_be_stands_in_one_bracket(text: str, shown: str) -> None:
    formatter = HelpFormatter(width=80)
    formatter.write_dl([("-o", text)])
    assert formatter.getvalue() == f"-o  {shown}\n"
