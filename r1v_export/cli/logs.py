"""Where log records go: to stderr with -v, to a file with --log-file, as text or as JSON lines."""

from __future__ import annotations

import functools
import json
import logging
import math
import re
import sys
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import click
from click.core import ParameterSource

from r1v_export.cli.paths import OptionPath
from r1v_export.errors import UsageError
from r1v_export.progress import fitted
from r1v_export.quoting import visible

Function = TypeVar("Function", bound=Callable[..., Any])

PACKAGE = logging.getLogger("r1v_export")
WARNINGS = logging.getLogger("py.warnings")
"""Where Python puts what libraries warn of (a damaged EXIF, a deprecation): for the log, not for stderr."""

LIBRARIES = logging.getLogger("r1v_export.libraries")
"""Whether it is enabled decides what libraries that log to stderr by themselves, in text, may write there."""

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
"""Attributes that every record has; all others are fields of its event."""


def logging_options(function: Function) -> Function:
    """`-v`, `--log-file` and `--log-format`, applied before the command runs and undone after it."""

    @functools.wraps(function)
    def wrapper(*args: Any, verbose: int, log_file: Path | None, log_format: str, **options: Any) -> Any:
        if not verbose and log_file is None:
            _refuse_format_of_no_log()
        handlers = _handlers(verbose, log_file, log_format)
        level_before, libraries_before = PACKAGE.level, LIBRARIES.level
        logging.captureWarnings(True)
        try:
            for handler in handlers:
                PACKAGE.addHandler(handler)
                WARNINGS.addHandler(handler)
            if handlers:
                PACKAGE.setLevel(_level(verbose))
            if handlers and (log_format == "json" or not verbose):
                LIBRARIES.setLevel(logging.CRITICAL)
                note = "what ONNX Runtime logs by itself is not shown: it is text; --log-format text with -v shows it"
                PACKAGE.debug(note)
            return function(*args, **options)
        except KeyboardInterrupt as interrupt:
            if json_on_stderr():
                raise click.Abort from interrupt  # of any other interrupt click ends the line on stderr
            raise
        finally:
            logging.captureWarnings(False)
            PACKAGE.setLevel(level_before)
            LIBRARIES.setLevel(libraries_before)
            for handler in handlers:
                PACKAGE.removeHandler(handler)
                WARNINGS.removeHandler(handler)
                handler.close()

    decorated: Any = wrapper
    decorated = click.option(
        "--log-format", type=click.Choice(["text", "json"]), default="text", help="How to write the log."
    )(decorated)
    decorated = click.option("--log-file", type=OptionPath(), help="Append the log to this file.")(decorated)
    verbose = click.option("-v", "--verbose", count=True, help="Log to stderr what is decided and done; -vv for more.")
    result: Function = verbose(decorated)
    return result


def _refuse_format_of_no_log() -> None:
    """
    Raises:
        UsageError: `--log-format` was typed.
    """
    if click.get_current_context().get_parameter_source("log_format") is not ParameterSource.DEFAULT:
        raise UsageError(
            "An option has no effect without a log.",
            found="--log-format",
            fix="add -v for a log on stderr, or --log-file FILE, or omit it",
        )


def json_on_stderr(arguments: Sequence[str] | None = None) -> bool:
    """Whether stderr is a log of JSON lines, so that nothing else may be printed there.

    Args:
        arguments: of a command line that is not running; the handlers that are there decide if omitted.
    """
    if arguments is None:
        return any(
            isinstance(each, TerminalHandler) and isinstance(each.formatter, JsonFormatter) for each in PACKAGE.handlers
        )
    as_json = "--log-format=json" in arguments or ("--log-format", "json") in pairwise(arguments)
    return as_json and any(re.fullmatch("--verbose|-q*v[qv]*", each) for each in arguments)


def json_line(level: int, message: str, **fields: Any) -> str:
    """What `JsonFormatter` makes of a message that no logger passes on."""
    record = logging.makeLogRecord({"name": PACKAGE.name, "levelno": level, "levelname": logging.getLevelName(level)})
    vars(record).update(msg=message, **fields)
    return JsonFormatter().format(record)


def log_note(line: str) -> None:
    """Log what is a note to people otherwise; a warning as one."""
    message = line.removeprefix("warning: ")
    PACKAGE.log(logging.INFO if message == line else logging.WARNING, "%s", message)


def say(line: str) -> None:
    """Print a line to people on stderr, within the terminal's width; log it where stderr is a log of JSON lines."""
    if json_on_stderr():
        log_note(line)
    else:
        pieces = (piece for part in line.split("\n") for piece in fitted(part, sys.stderr, indent=2) or [""])
        click.echo("\n".join(pieces), err=True)


class TextFormatter(logging.Formatter):
    """One line for each record, tracebacks aside: names of files and tensors come from outside, and are escaped."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  the name is logging's
        """Format a record as one line, with what is not printable escaped."""
        record.message = visible(record.message)
        return super().formatMessage(record)


class JsonFormatter(logging.Formatter):
    """One JSON object for each record: time, level, logger, message, and the fields of its event."""

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, Any] = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S") + f".{record.msecs:03.0f}",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        known = _STANDARD | fields.keys()
        event = {name: value for name, value in vars(record).items() if name not in known}
        # An underscore marks a library's own field: with Ray in the process every record of Python has one.
        fields |= {name: _finite(value) for name, value in event.items() if not name.startswith("_")}
        return json.dumps(fields, ensure_ascii=False, default=str)


def _finite(value: Any) -> Any:
    """A number that JSON knows, or its name."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


class TerminalHandler(logging.StreamHandler[Any]):
    """Writes to stderr; on a terminal, over the line that shows progress, which is drawn again below."""

    answer_on_line: ClassVar[bool] = False
    """Whether the terminal's last line holds text of an answer, which nothing draws again; see `answers.stream`."""

    def __init__(self) -> None:
        super().__init__(sys.stderr)

    def format(self, record: logging.LogRecord) -> str:
        begin = ""
        if self.stream.isatty():
            begin = "\n" if TerminalHandler.answer_on_line else "\r\x1b[K"
            TerminalHandler.answer_on_line = False
        return begin + super().format(record)


class LogFileHandler(logging.FileHandler):
    """Appends to a file; a full disk ends the command instead of the log."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  the name is logging's
        raise


def _level(verbose: int) -> int:
    return logging.DEBUG if verbose > 1 else logging.INFO


def _handlers(verbose: int, log_file: Path | None, log_format: str) -> list[logging.Handler]:
    handlers: list[logging.Handler] = [TerminalHandler()] if verbose else []
    if log_file is not None:
        try:
            handlers.append(LogFileHandler(log_file, encoding="utf-8", errors="backslashreplace"))
        except OSError as error:
            fix = "name a file in a folder that exists and can be written"
            raise UsageError(
                "The log file cannot be written.", where=log_file, found=error.strerror, fix=fix
            ) from error
    for handler in handlers:
        handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    return handlers
