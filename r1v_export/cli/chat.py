"""`r1v-export run --chat`: a conversation, read from a terminal or a pipe."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import click

from r1v_export.cli.error_text import LABEL, fitted_error
from r1v_export.cli.logs import json_line, json_on_stderr, say
from r1v_export.errors import R1VError, UsageError

if TYPE_CHECKING:
    from PIL import Image

    from r1v_export.runner.answer import TokenEvent

COMMANDS = "/image PATH shows an image with the next question; /exit or the end of the input ends"
PROMPT = "> "


def chat(
    ask: Callable[[str, list[Image.Image]], Iterator[TokenEvent]],
    load_image: Callable[[str], Image.Image],
    show: Callable[[Iterator[TokenEvent]], None],
    images: list[Image.Image],
) -> None:
    """Answer one line after the other.

    On a terminal an error or Ctrl-C ends the turn, and its images are shown with the next question; elsewhere it ends
    the conversation, as Ctrl-C twice at the prompt does.

    Args:
        ask: answers a turn, as `Conversation.ask`.
        show: prints a turn's answer.
        images: shown with the first question.

    Raises:
        UsageError: a line begins with a command that there is not.
        InputError: an image or a turn cannot be used.
    """
    interactive = sys.stdin.isatty()
    for line in _lines(interactive):
        try:
            if path := image_command(line):
                images = [*images, load_image(path)]
            else:
                show(ask(line, images))
                images = []
        except R1VError as error:
            if not interactive:
                raise
            _show_error(error)
        except KeyboardInterrupt:
            if not interactive:
                raise
            _remark("stopped; this turn is not part of the conversation")


def image_command(line: str) -> str | None:
    """The path of `/image PATH`, None for a line that is no command.

    Raises:
        UsageError: an unknown command, or no path. What only begins with a slash, such as a path, is a question.
    """
    command = re.match(r"/([a-z]+)(?:\s+(.*))?$", line)
    if command is None:
        return None
    if command[1] == "image" and not command[2]:
        fix = "type the path behind it"
        raise UsageError("/image needs the path of an image.", expected="/image PATH", found=line[:80], fix=fix)
    if command[1] != "image":
        fix = "type one of these; a question must not begin with a slash and a word alone"
        raise UsageError("Unknown conversation command.", expected=COMMANDS, found=line[:80], fix=fix)
    return command[2]


def _lines(interactive: bool) -> Iterator[str]:
    """The lines that are not empty, up to `/exit`."""
    if interactive:
        say(COMMANDS)
    for line in map(str.strip, _prompted() if interactive else sys.stdin):
        if line == "/exit":
            return
        if line:
            yield line


def _prompted() -> Iterator[str]:
    import readline  # noqa: F401  input() then edits the line and remembers earlier ones

    interrupted = False
    shown = sys.stdout.isatty()  # a prompt must not come between the answers of a redirected stdout
    while True:
        try:
            if not shown and not json_on_stderr():  # among JSON lines there is none
                click.echo(PROMPT, nl=False, err=True)
            line = input(PROMPT if shown else "")
        except KeyboardInterrupt:
            if interrupted:
                raise
            interrupted = True  # It may have been meant for an answer that has just ended.
            if shown and json_on_stderr():
                click.echo()  # ends the line of the prompt
            _remark("Ctrl-C once more, Ctrl-D or /exit ends the conversation")
            continue
        except EOFError:
            if shown or not json_on_stderr():
                click.echo(err=not shown)
            return
        interrupted = False
        yield line


def _remark(text: str) -> None:
    """Say something below the line that was typed or is being answered."""
    say(text if json_on_stderr() else f"\n({text})")


def _show_error(error: R1VError) -> None:
    """An error that ends a turn, on stderr."""
    as_json = json_on_stderr()
    line = json_line(logging.ERROR, error.what, error=error.as_dict()) if as_json else LABEL + fitted_error(str(error))
    click.echo(line, err=True)
