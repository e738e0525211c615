"""How `run` chooses tokens: its options, and the sampling that they make of the checkpoint's own."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from r1v_export.cli.logs import say
from r1v_export.cli.output import Number, WholeNumber
from r1v_export.cli.paths import OptionPath
from r1v_export.errors import InputError, R1VError, UsageError
from r1v_export.progress import fitted

if TYPE_CHECKING:
    from r1v_export.generation import Guide, Sampling

Function = TypeVar("Function", bound=Callable[..., Any])

MAX_SCHEMA_BYTES = 1 << 20

_OPTIONS = (
    click.option("--greedy", is_flag=True, help="Take the likeliest token, whatever the checkpoint recommends."),
    click.option(
        "--max-new-tokens", type=WholeNumber(min=1), help="Longest answer. [default: the checkpoint's, or 512]"
    ),
    click.option("--temperature", type=Number(min=0), help="0 is greedy. [default: the checkpoint's, or 0]"),
    click.option(
        "--top-p", type=float, metavar="X", help="Draw from this much probability. [default: the checkpoint's, or 1]"
    ),
    click.option(
        "--top-k", type=int, metavar="N", help="Draw from this many tokens; 0 is off. [default: the checkpoint's]"
    ),
    click.option(
        "--min-p", type=float, metavar="X", help="Draw no token below this share of the likeliest one's probability."
    ),
    click.option(
        "--repetition-penalty", type=float, metavar="X", help="Above 1 repeats less. [default: the checkpoint's, or 1]"
    ),
    click.option(
        "--presence-penalty", type=float, metavar="X", help="Taken off the logits of tokens of the answer; -2 to 2."
    ),
    click.option(
        "--frequency-penalty", type=float, metavar="X", help="The same for each time that they are in it; -2 to 2."
    ),
    click.option("--seed", type=int, metavar="N", default=0, show_default=True, help="Random seed for sampling."),
    click.option("--stop", multiple=True, metavar="TEXT", help="End the answer before this text; repeat for several."),
    click.option("--stop-in-reasoning", is_flag=True, help="Search the reasoning for --stop too."),
    click.option(
        "--max-reasoning-tokens", type=WholeNumber(min=0), help="End the reasoning after this many. [default: never]"
    ),
    click.option("--json-schema", type=OptionPath(), help="Let the answer be JSON of the schema in this file."),
    click.option("--regex", metavar="PATTERN", help="Let the answer be what this regular expression matches."),
    click.option(
        "--logprobs", type=int, metavar="N", help="With --format json: log probabilities, also of the N likeliest."
    ),
)


def sampling_options(function: Function) -> Function:
    """The options that say how tokens are chosen and when an answer ends, as keyword arguments of the command."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


def choose_sampling(
    config: Mapping[str, Any],
    *,
    greedy: bool,
    json_schema: Path | None,
    regex: str | None,
    **options: Any,
) -> Sampling:
    """The checkpoint's sampling, and options in its place.

    Args:
        config: of the checkpoint's generation_config.json.
        options: fields of `Sampling`; None is the checkpoint's.

    Raises:
        UsageError: options exclude each other, or a value is out of range.
        InputError: the schema's file cannot be read, or is not JSON.
    """
    from r1v_export.processing.generation_config import default_sampling

    given = {name: value for name, value in options.items() if value is not None}
    if greedy and given.get("temperature"):
        raise UsageError(
            "Greedy sampling has no temperature.", where="--greedy --temperature", fix="pass one of the two options"
        )
    default = replace(default_sampling(config, greedy=greedy), guide=_guide(json_schema, regex))
    try:
        chosen = replace(default, **given)
    except UsageError as error:
        option = f"--{str(error.where).removeprefix('sampling.').replace('_', '-')}"
        fix = (error.fix or "").replace("pass a value", f"pass {option} with a value")
        raise UsageError(error.what, where=option, expected=error.expected, found=error.found, fix=fix) from error
    return chosen


def print_sampling(chosen: Sampling, config: Mapping[str, Any]) -> None:
    """Say on stderr how tokens are sampled, and which of the checkpoint's fields have no effect.

    Args:
        config: of the checkpoint's generation_config.json.
    """
    from r1v_export.processing.generation_config import NAME, unused_fields

    lines = fitted(f"sampling: {chosen}", sys.stderr, indent=10)
    if unused := unused_fields(config):
        lines += fitted(f"sampling: not used of {NAME}: {', '.join(unused)}", sys.stderr, indent=10)
    say("\n".join(lines))


def _guide(json_schema: Path | None, regex: str | None) -> Guide | None:
    """The form that options ask for, checked before the model is loaded."""
    from r1v_export.generation import Guide
    from r1v_export.runner.guided import check_guide

    if json_schema is not None and regex is not None:
        raise UsageError("--json-schema and --regex exclude each other.", fix="pass one of the two options")
    kind: type[R1VError] = InputError
    if json_schema is not None:
        guide, where = Guide.json_schema(_read_schema(json_schema)), f"--json-schema {json_schema}"
    elif regex is not None:
        guide, where, kind = Guide.regex(regex), "--regex", UsageError
    else:
        return None
    try:
        check_guide(guide)
    except InputError as error:
        raise kind(error.what, where=where, found=error.found, fix=error.fix) from error
    return guide


def _read_schema(path: Path) -> dict[str, Any]:
    from r1v_export.files import read_regular_text
    from r1v_export.strict import load_json

    fix = "correct the file, or name another with --json-schema"
    try:
        text = read_regular_text(path, MAX_SCHEMA_BYTES)
    except OSError as error:
        where = f"--json-schema {path}"
        raise InputError("The JSON Schema cannot be read.", where=where, found=error.strerror, fix=fix) from error
    schema = load_json(text, InputError, "The JSON Schema is invalid", where=path, fix=fix)
    if not isinstance(schema, dict):
        found = type(schema).__name__
        raise InputError("This is no JSON Schema.", where=path, expected="an object", found=found, fix=fix)
    return schema
