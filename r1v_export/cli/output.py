"""What commands share: options, and how they print a result."""

from __future__ import annotations

import math
import sys
import textwrap
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.core import ParameterSource
from click.shell_completion import CompletionItem

from r1v_export.cli.interrupt import answered_interrupts
from r1v_export.cli.logs import json_on_stderr, log_note, logging_options
from r1v_export.cli.streams import json_text
from r1v_export.errors import UsageError
from r1v_export.progress import fitted, terminal_width
from r1v_export.quoting import visible
from r1v_export.targets.entry_points import names

if TYPE_CHECKING:
    from r1v_export.progress import Progress

_QUIET = "r1v_export.quiet"
"""Of a command's context: whether `--quiet` was given."""

_LEAST_WIDTH = 32
"""Of a wrapped column next to others."""

Function = TypeVar("Function", bound=Callable[..., Any])


def common_options(function: Function) -> Function:
    """`--format` (given to the command as `format_`), those of `logs`, `--quiet` (seen by `shown_progress`) and
    `--debug` (seen by `main`)."""
    function = click.option("--debug", is_flag=True, expose_value=False, help="Show the traceback of an error.")(
        function
    )
    function = logging_options(answered_interrupts()(function))
    function = click.option(
        "-q", "--quiet", is_flag=True, expose_value=False, callback=_remember_quiet, help="Show no progress."
    )(function)
    return click.option(
        "--format", "format_", type=click.Choice(["text", "json"]), default="text", help="How to print the result."
    )(function)


def _in_words(least: float | None, most: float | None) -> str:
    """A range as help and errors name it: `1 to 4096` or `1 or more`; click writes `1<=x<=4096`."""
    if least is None or most is None:
        return f"{most} or less" if least is None else f"{least} or more"
    return f"{least} to {most}"


class WholeNumber(click.IntRange):
    """A whole number within a range: `N` in help."""

    name = "integer"

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        """What help shows for a value."""
        return "N"

    def _describe_range(self) -> str:
        return _in_words(self.min, self.max)


class Number(click.FloatRange):
    """A finite number within a range: `X` in help."""

    name = "number"

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        """What help shows for a value."""
        return "X"

    def _describe_range(self) -> str:
        return _in_words(self.min, self.max)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The number; NaN, which every range lets through, and infinity are usage errors."""
        number: float = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return number


class ByteSize(click.types.StringParamType):
    """A number of bytes with a unit, such as `8GiB`, or `auto`: `SIZE` in help."""

    name = "size"

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        """What help shows for a value."""
        return "SIZE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The text as it was typed.

        Raises:
            UsageError: it is no such number.
        """
        from r1v_export.byte_size import parse_size
        from r1v_export.strict import SettingError

        try:
            if value != "auto":
                parse_size(value)
        except SettingError as error:
            what = f"Invalid value for '{param.opts[0]}': {error}." if param else f"{error}."
            raise UsageError(what, expected=error.expected, found=error.found, fix=error.fix) from error
        return str(value)


device_option = click.option(
    "--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True, help="Where it runs."
)
gate_option = click.option(
    "--gate",
    type=click.Choice(["auto", "whole", "streamed"]),
    help="Compare whole models or block by block; auto: whole if it fits in memory.",
)
image_policy_option = click.option(
    "--image-policy",
    type=click.Choice(["as_displayed", "published"]),
    help="Read images as viewers show them, or as the published code does. [default: as_displayed]",
)
ray_option = click.option(
    "--ray",
    metavar="ADDRESS",
    is_eager=True,  # decides which CPUs --threads is compared with
    help="Run parts as tasks of this Ray cluster, such as `auto`; see docs/ray.md.",
)
shards_option = click.option(
    "--shards",
    type=WholeNumber(min=1),
    help="Parts that calibration samples are split into, for --ray to spread. [default: 1]",
)


def calibration_options(function: Function) -> Function:
    """Options of how a calibration is run, named as fields of `CalibrationConfig`."""
    for option in reversed(
        (
            click.option(
                "--samples",
                type=WholeNumber(min=1),
                help="Calibration samples at most. [default: 128; with quick effort 24]",
            ),
            click.option(
                "--effort",
                type=click.Choice(["auto", "quick", "full"]),
                help="Quick: 24 samples, int4 by RTN; full: 128, GPTQ; auto: quick from 8 billion parameters.",
            ),
            click.option(
                "--matmul-precision",
                type=click.Choice(["auto", "float32", "bfloat16"]),
                help="Type of matrix products in calibration on a CPU; auto: bfloat16 if it is fast.",
            ),
            click.option(
                "--activation-memory",
                type=ByteSize(),
                help="Memory for activations between blocks. [default: 4GiB, or more where there is room]",
            ),
            click.option(
                "--saved-share",
                type=Number(min=0),
                help="Share of the model's size that is saved to resume a calibration. [default: 0.02]",
            ),
        )
    ):
        function = option(function)
    return function


class TargetOption(click.Option):
    """An option that names a target: its help lists them, and a shell completes them.

    Args:
        values: the targets that it takes, read when they are shown; all of them if omitted.
    """

    def __init__(self, *args: Any, values: Callable[[], Sequence[str]] = names, **kwargs: Any) -> None:
        super().__init__(*args, metavar="NAME", **kwargs)
        self._values = values

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        """The help, with the targets before its default."""
        record = super().get_help_record(ctx)
        if record is None:
            return None
        text, bracket, default = record[1].partition(" [default:")
        return record[0], f"{text} One of {', '.join(self._values())}.{bracket}{default}"

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """The targets that begin with what is typed."""
        return [CompletionItem(name) for name in self._values() if name.startswith(incomplete)]


target_option = click.option(
    "--target",
    cls=TargetOption,
    values=lambda: (*names(), "pytorch"),
    help="Engine that answers. [default: the bundle's first]",
)
engine_option = click.option(
    "--engine", metavar="DIR|llm-api", help="A target's own library decodes: an engine's folder, or llm-api."
)
MAX_CACHE_MIB = 1 << 24
"""16 TiB, more than any machine has memory: a larger number is a mistake, such as bytes given as MiB."""
max_rows_option = click.option(
    "--max-rows",
    type=WholeNumber(1, 1024),
    default=16,
    show_default=True,
    help="Requests that are answered together, at most.",
)
cache_mib_option = click.option(
    "--cache-mib",
    type=WholeNumber(1, MAX_CACHE_MIB),
    default=2048,
    show_default=True,
    help="MiB of the key-value cache.",
)
image_cache_mib_option = click.option(
    "--image-cache-mib",
    type=WholeNumber(0, MAX_CACHE_MIB),
    default=256,
    show_default=True,
    help="MiB of cached image embeddings.",
)
draft_tokens_option = click.option(
    "--draft-tokens",
    type=WholeNumber(min=0),
    default=8,
    show_default=True,
    help="Tokens guessed from what repeats and checked in a step, at most; 0 for none.",
)
model_option = click.option("--model", help="The checkpoint, where the bundle was built from a folder.")

LIBRARY_S_LOOP = "with --engine, whose library sizes its cache and its steps itself"
"""Why an option of the key-value cache, of prefill or of drafts has no effect."""


def refuse_given(context: click.Context, names: Iterable[str], why: str, fix: str) -> None:
    """Refuse options that would have no effect, if they were typed.

    Args:
        names: of parameters.
        why: goes on after "An option has no effect".

    Raises:
        UsageError: one was.
    """
    unused = (None, ParameterSource.DEFAULT)
    given = [f"--{name.replace('_', '-')}" for name in names if context.get_parameter_source(name) not in unused]
    if given:
        raise UsageError(f"An option has no effect {why}.", found=", ".join(given), fix=fix)


def refuse_unread_model(target: str | None) -> None:
    """Refuse `--model` where the bundle's own weights are run.

    Raises:
        UsageError: it was typed, and the target is not the checkpoint's reference.
    """
    if target != "pytorch":
        why = "on engines of the bundle, which has their weights"
        refuse_given(click.get_current_context(), ("model",), why, "omit it, or add --target pytorch")


def _remember_quiet(context: click.Context, _option: click.Parameter, value: bool) -> None:
    context.meta[_QUIET] = value


def shown_progress(format_: str, stages: int = 0) -> Progress:
    """Progress as the command line asks for it: none where the result is JSON, and with `--quiet` warnings alone.

    Args:
        stages: how many there will be, if known.
    """
    from r1v_export.progress import Progress

    as_json = format_ == "json"
    if json_on_stderr():  # its stages are events already

        class LoggedNotes(Progress):
            def note(self, line: str) -> None:
                log_note(line)

        return LoggedNotes(stages, quiet=True)
    return Progress(stages, quiet=as_json or click.get_current_context().meta[_QUIET], notes=not as_json)


def print_json(value: Any) -> None:
    """Print a value as indented JSON on stdout."""
    click.echo(json_text(value))


def table(rows: Iterable[Sequence[Any]], header: Sequence[str] = ()) -> str:
    """Columns aligned with spaces; numbers to the right; control characters, as of names in files, made visible.

    Where the terminal is too narrow ($COLUMNS; 80 where there is none), the first column goes above the others, and
    where that is too wide as well, each value has a line of its own behind its header.
    """
    cells = [[visible(str(cell)) for cell in row] for row in rows]
    width = terminal_width(sys.stdout)
    lines = _columns(cells, header)
    if _widest(lines) <= width:
        return "\n".join(lines)
    names = [wrapped(name) for name in (*header[:1], *(row[0] for row in cells))]
    others = [f"    {line}" for line in _columns([row[1:] for row in cells], header[1:])]
    if not header or _widest(others) <= width:
        pairs = zip(names, others, strict=True)
    else:
        values = [
            [(f"    {name}", cell) for name, cell in zip(header[1:], row[1:], strict=True) if cell] for row in cells
        ]
        pairs = zip(names, ("", *map(wrapped_table, values)), strict=True)
    return "\n".join(line for pair in pairs for line in pair if line.strip())


def _columns(rows: Sequence[Sequence[str]], header: Sequence[str]) -> list[str]:
    """The lines of a table, of any width."""
    cells = [*([header] if header else ()), *rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    numeric = [all(_is_number(row[i]) for row in rows) for i in range(len(widths))]
    lines = (
        "  ".join(
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, numeric, strict=True)
        )
        for row in cells
    )
    return [line.rstrip() for line in lines]


def _widest(lines: Iterable[str]) -> int:
    return max(map(len, lines), default=0)


def wrapped_table(rows: Iterable[Sequence[str]]) -> str:
    """Columns as of `table`, the last one wrapped to the width of the terminal: $COLUMNS, else 80 where there is none.

    Where that leaves too little room for it, the last column goes below the others.
    """
    width = terminal_width(sys.stdout)
    cells = [[visible(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*(row[:-1] for row in cells), strict=True)]
    indent = sum(widths) + 2 * len(widths)
    below = width - indent < min(_LEAST_WIDTH, max((len(row[-1]) for row in cells), default=0))
    lines = []
    for row in cells:
        first = "  ".join(cell.ljust(size) for cell, size in zip(row, widths, strict=False))
        rest = " " * (4 if below else indent)
        pieces = textwrap.wrap(row[-1], max(width - len(rest), 1), break_on_hyphens=False)
        if not below:
            lines.append(f"{first}  {pieces.pop(0) if pieces else ''}")
        elif first.strip():
            lines.append(first)
        lines += [rest + piece for piece in pieces]
    return "\n".join(line.rstrip() for line in lines)


def wrapped(text: str) -> str:
    """A sentence in lines of the terminal's width, or 80 where there is none; longer words, as of paths, stay whole."""
    width = terminal_width(sys.stdout)
    return textwrap.fill(visible(text), width, break_long_words=False, break_on_hyphens=False)


def print_summary(sentence: str, command: str = "") -> None:
    """Print the line that ends a command, broken at spaces where a terminal is narrower.

    Args:
        command: what to do next, behind the sentence; it is copied, so it stays whole, on a line of its own if need be.
    """
    lines = fitted(visible(f"{sentence} {command}".rstrip()), sys.stdout, indent=2)
    if command and len(lines) > 1:
        lines = [*fitted(visible(sentence), sys.stdout, indent=2), f"  {visible(command)}"]
    click.echo("\n".join(lines))


def write_page(path: Path, page: str) -> None:
    """Write an HTML page that was asked for.

    Raises:
        UsageError: it cannot be written there.
    """
    try:
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        fix = "name a file, such as page.html, in a folder that exists and can be written"
        raise UsageError("The page cannot be written.", where=path, found=error.strerror, fix=fix) from error


def _is_number(cell: str) -> bool:
    return cell[:1].isdigit() or cell in ("", "-")
