"""Values from outside, quoted in messages: short, on one line, every control character visible, whatever they are.

Input is not trusted: a value is never printed whole, since a few lines of YAML with aliases can stand for gigabytes,
and never as it is, since terminals obey escape sequences.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import PurePath
from typing import Any

MAX_VALUE_CHARACTERS = 200
"""How much of a value an error message shows."""

_SHOWN_ITEMS = 6
_SHOWN_LEVELS = 3
_OMISSION = "..."


def shorten_value(value: Any) -> str:
    """A value in the notation of JSON, cut to `MAX_VALUE_CHARACTERS`; safe for recursive and huge ones."""
    return shorten_text(_render(value, _SHOWN_LEVELS))


def shorten_text(text: str, limit: int = MAX_VALUE_CHARACTERS) -> str:
    """One line of a text: control characters are escaped, and what exceeds the limit is omitted."""
    return _cut(visible(text[: limit + 1]), limit, len)


def show(value: object, limit_bytes: int, *, keep_lines: bool = False) -> str:
    """Whatever an error is about, as text: a path, a number, an exception, a text, a list, a mapping.

    Args:
        limit_bytes: of the text as a JSON string in ASCII, its most costly form.
        keep_lines: line ends stay.
    """
    text = _text(value)[: limit_bytes + 1]
    parts = text.split("\n") if keep_lines else [text]
    return _cut("\n".join(visible(part) for part in parts), limit_bytes, json_bytes)


def did_you_mean(text: str, known: Iterable[str]) -> str | None:
    """A question for the nearest of the known names, whatever its case; None where none is near."""
    from difflib import get_close_matches  # for errors alone: `--help` imports this module

    names = {name.lower(): name for name in known}
    close = get_close_matches(text.lower(), names, n=1)
    return f"did you mean {names[close[0]]}?" if close else None


def json_bytes(text: str) -> int:
    """Length of a text inside a JSON string in ASCII."""
    return len(json.dumps(text)) - 2


def _text(value: object) -> str:
    if isinstance(value, str):
        return str(value)
    if value is None or isinstance(value, bool | PurePath):
        return str(value)
    if isinstance(value, int | Mapping | list | tuple | set | frozenset):
        return _render(list(value) if isinstance(value, set | frozenset) else value, _SHOWN_LEVELS)
    try:
        return str(value)
    except Exception:  # an object whose text cannot be made: too deep, too large, or faulty
        return f"a {type(value).__name__}"


def _cut(text: str, limit: int, cost: Callable[[str], int]) -> str:
    """The longest start of a text whose cost is within the limit."""
    if cost(text) <= limit:
        return text
    fits, beyond = 0, min(len(text), limit) + 1
    while beyond - fits > 1:
        middle = (fits + beyond) // 2
        fits, beyond = (middle, beyond) if cost(text[:middle]) + len(_OMISSION) <= limit else (fits, middle)
    return text[:fits] + _OMISSION


def visible(text: str) -> str:
    """A text without line ends, terminal escapes, marks of direction and other characters that are not to be seen."""
    return "".join(char if char.isprintable() else _escaped(char) for char in text)


_SYMBOLS = {
    **dict.fromkeys(range(0x80, 0xA0), "\N{REPLACEMENT CHARACTER}"),
    **{code: chr(0x2400 + code) for code in range(0x20) if chr(code) not in "\n\t"},
    0x7F: "\N{SYMBOL FOR DELETE}",
    **dict.fromkeys(
        (0x61C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A)), "\N{REPLACEMENT CHARACTER}"
    ),
}
"""Symbols for control characters, and for marks and overrides of direction (Unicode's Bidi_Control)."""


def printable(text: str) -> str:
    """A text of several lines, as a model or a stranger wrote it: line ends and tabs stay, and symbols stand for what
    terminals and pages obey, control characters and marks of direction."""
    return text.translate(_SYMBOLS)


def _escaped(char: str) -> str:
    return char.encode("unicode_escape").decode("ascii")


def _render(value: Any, levels: int) -> str:
    match value:
        case None | True | False:
            return json.dumps(value)
        case int():
            return str(int(value)) if value.bit_length() <= 256 else f"an integer of {value.bit_length()} bits"
        case float():
            return str(value)
        case str():
            return f"'{shorten_text(value)}'"
        case Mapping() if levels:
            return f"{{{_items(_fields(value, levels - 1), len(value))}}}"
        case list() | tuple() if levels:
            return f"[{_items((_render(item, levels - 1) for item in value), len(value))}]"
        case Mapping() | list() | tuple():
            return _OMISSION
        case _:
            return f"a {type(value).__name__}"


def _fields(value: Mapping[Any, Any], levels: int) -> Iterator[str]:
    return (
        f"{shorten_text(str(key)) if isinstance(key, str) else _render(key, 0)}: {_render(item, levels)}"
        for key, item in value.items()
    )


def _items(items: Iterator[str], count: int) -> str:
    """The first items; rendered one at a time, so that the rest costs nothing."""
    shown = [item for _, item in zip(range(_SHOWN_ITEMS), items, strict=False)]
    return ", ".join(shown if count <= _SHOWN_ITEMS else [*shown, _OMISSION])
