"""`r1v-export run`: ask a bundle about images."""

from __future__ import annotations

import sys
import unicodedata
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from r1v_export.cli.output import common_options, device_option, engine_option, model_option, print_json, target_option

if TYPE_CHECKING:
    from r1v_export.config import Device
    from r1v_export.runner.answer import Answer, TokenEvent

CUT_OFF = {
    "length": "cut off by --max-new-tokens",
    "context": "cut off: prompt and answer fill the model's context",
}
"""By finish reason, what is said of an answer that did not end by itself."""


@click.command(short_help="Ask a bundle about images.")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("question")
@click.option("--image", "images", multiple=True, type=click.Path(path_type=Path), help="An image; repeat for several.")
@target_option
@engine_option
@model_option
@click.option("--no-think", is_flag=True, help="Answer without reasoning.")
@click.option("--max-new-tokens", type=click.IntRange(min=1), default=512, show_default=True, help="Longest answer.")
@click.option(
    "--temperature", type=click.FloatRange(min=0), default=0.0, show_default=True, help="0 takes the likeliest token."
)
@click.option("--top-p", type=float, default=1.0, show_default=True, help="Draw from this much probability.")
@click.option("--top-k", type=int, default=0, show_default=True, help="Draw from this many tokens; 0 is off.")
@click.option("--repetition-penalty", type=float, default=1.0, show_default=True, help="Above 1 repeats less.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the draws.")
@device_option
@common_options
def command(
    bundle: Path,
    question: str,
    images: tuple[Path, ...],
    target: str | None,
    engine: str | None,
    model: str | None,
    no_think: bool,
    device: Device,
    format_: str,
    **sampling: Any,
) -> None:
    """Ask BUNDLE a QUESTION, about images if any; the reasoning and the answer are streamed."""
    from r1v_export.bundle import Bundle
    from r1v_export.generation import Sampling
    from r1v_export.pipeline.open_runner import open_runner
    from r1v_export.reference.load_image import load_image
    from r1v_export.runner.base import Request

    chosen = Sampling(**sampling)
    policy = Bundle.open(bundle).config.image_policy
    request = Request.ask(question, *(load_image(image, policy) for image in images), think=not no_think)
    runner = open_runner(bundle, target, model, device, engine)
    events = runner.generate([request], chosen)
    answer = _collect(events) if format_ == "json" else _stream(events)
    if format_ == "json":
        print_json(_as_json(answer))


def _stream(events: Iterable[TokenEvent]) -> Answer:
    """Print reasoning and answer as they come: the reasoning dimmed on a terminal, inside its tags elsewhere."""
    dimmed = sys.stdout.isatty()
    thinking = False
    for event in events:
        if event.reasoning:
            if not thinking and not dimmed:
                click.echo("<think>")
            thinking = True
            reasoning = printable(event.reasoning)
            click.echo(click.style(reasoning, dim=True) if dimmed else reasoning, nl=False)
        if event.text:
            if thinking:
                click.echo("\n" if dimmed else "\n</think>")
                thinking = False
            click.echo(printable(event.text), nl=False)
        if event.answer is not None:
            click.echo()
            if reason := CUT_OFF.get(event.answer.finish_reason):
                click.echo(f"({reason})", err=True)
            return event.answer
    raise AssertionError("a generation ends with an answer")


def printable(text: str) -> str:
    """Text without control characters: a model may have been taught to write what a terminal takes for commands."""
    return "".join(c if c in "\n\t" or unicodedata.category(c) != "Cc" else "\N{REPLACEMENT CHARACTER}" for c in text)


def _collect(events: Iterable[TokenEvent]) -> Answer:
    return next(event.answer for event in events if event.answer is not None)


def _as_json(answer: Answer) -> dict[str, Any]:
    fields = asdict(answer)
    return {
        **fields,
        "token_ids": list(answer.token_ids),
        "timings": {k: round(v, 3) for k, v in fields["timings"].items()},
    }
