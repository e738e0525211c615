"""How `run` shows answers: streamed as text, or as JSON."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from r1v_export.cli.logs import TerminalHandler, say
from r1v_export.cli.output import print_json
from r1v_export.cli.streams import json_text
from r1v_export.count import Count
from r1v_export.quoting import printable

if TYPE_CHECKING:
    from r1v_export.generation import Sampling
    from r1v_export.runner.answer import Answer, TokenEvent


def stream(events: Iterable[TokenEvent], *, answer_only: bool) -> None:
    """Print reasoning and answer as they come: the reasoning dimmed where there are colors, else inside its tags."""
    dimmed = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    thinking = False
    for event in events:
        if event.reasoning and not answer_only:
            if not thinking and not dimmed:
                click.echo("<think>")
            thinking = True
            reasoning = printable(event.reasoning)
            _write(click.style(reasoning, dim=True) if dimmed else reasoning, reasoning)
        if event.text:
            if thinking:
                click.echo("\n" if dimmed else "\n</think>")
                thinking = False
            text = printable(event.text)
            _write(text, text)
        if event.answer is not None:
            closed = thinking and not dimmed and event.answer.reasoning_complete  # and no text behind it
            click.echo("\n</think>" if closed else "")
            TerminalHandler.answer_on_line = False
            if remark := end_remark(event.answer):
                say(f"({remark})")


def _write(styled: str, text: str) -> None:
    """Write a piece of an answer; a record of the log that comes next begins a line of its own."""
    click.echo(styled, nl=False)
    TerminalHandler.answer_on_line = sys.stdout.isatty() and not text.endswith("\n")


def print_answer(events: Iterable[TokenEvent], sampling: Sampling, *, answer_only: bool, lines: bool) -> None:
    """Print the finished answer as JSON, on one line if `lines`."""
    answer = next(event.answer for event in events if event.answer is not None)
    fields = {**_as_json(answer), "sampling": {**asdict(sampling), "stop": list(sampling.stop)}}
    if answer_only:
        del fields["reasoning"]
    if lines:
        click.echo(json_text(fields, indent=None))
    else:
        print_json(fields)


def end_remark(answer: Answer) -> str | None:
    """Why an answer ended that did not end by itself, or what it lacks."""
    if answer.finish_reason == "length":
        remark = f"cut off after {Count(len(answer.token_ids), 'token')} by --max-new-tokens"
        return f"{remark}; {_no_text(answer)}" if answer.reasoning_complete and not answer.text else remark
    if answer.finish_reason == "context":
        tokens = answer.prompt_tokens + len(answer.token_ids)
        return f"cut off: prompt and answer fill the model's context of {Count(tokens, 'token')}"
    if not answer.reasoning_complete:
        return "the model stopped inside its reasoning: there is no answer"
    return None if answer.text else _no_text(answer)


def _no_text(answer: Answer) -> str:
    """Why there is nothing to see; special tokens have no text."""
    count = len(answer.token_ids) - answer.reasoning_tokens
    tokens = "its only token is a special one" if count == 1 else f"its {Count(count, 'token')} are special ones"
    return f"the answer has no text: {tokens} or white space, or --stop came first; --format json shows the ids"


def _as_json(answer: Answer) -> dict[str, Any]:
    fields = asdict(answer)
    return {
        **fields,
        "token_ids": list(answer.token_ids),
        "timings": {k: round(v, 3) for k, v in fields["timings"].items()},
    }
