"""The standard streams: closed, full, gone or in a narrow encoding, they end no command in a traceback."""

from __future__ import annotations

import io
import json
import math
import os
import sys
from contextlib import suppress
from typing import Any, BinaryIO


class UnfailingStream(io.TextIOWrapper):
    """What cannot be written is dropped: for stderr, whose loss must not stop the work it reports."""

    def write(self, text: str) -> int:
        with suppress(OSError):
            return super().write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            super().flush()


def prepare_streams() -> None:
    """Make the process's standard streams usable, before anything is opened or printed.

    A closed one becomes /dev/null, so that no file that is opened takes its place. Characters that an encoding does not
    have are escaped.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # The lowest free number: this one.
    sys.stdin = sys.stdin or open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stdout = sys.stdout or open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    if sys.stderr is None:
        sys.stderr = _unfailing(open(2, "wb", closefd=False), "utf-8")  # noqa: SIM115
    elif isinstance(sys.stderr, io.TextIOWrapper):
        sys.stderr = _unfailing(sys.stderr.buffer, sys.stderr.encoding)


def _unfailing(buffer: BinaryIO, encoding: str) -> UnfailingStream:
    return UnfailingStream(buffer, encoding=encoding, errors="backslashreplace", line_buffering=True)


def discard_stdout() -> None:
    """Send to /dev/null what stdout could not write: Python tries again when it exits, and complains."""
    with suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)


def json_text(value: Any, indent: int | None = 2) -> str:
    """JSON that stdout's encoding can hold: escaped where it lacks a character, or where a text is no Unicode.

    JSON has no infinities and no NaN: they are the strings "Infinity", "-Infinity" and "NaN", as in parity.json.
    """
    value = _with_named_numbers(value)
    text = json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        return json.dumps(value, indent=indent, allow_nan=False)
    return text


def _with_named_numbers(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, dict):
        return {name: _with_named_numbers(each) for name, each in value.items()}
    return [_with_named_numbers(each) for each in value] if isinstance(value, list | tuple) else value
