"""Long lists of problems, shortened for an error message."""

from __future__ import annotations

from collections.abc import Sequence

from r1v_export.quoting import shorten_text

_SHOWN = 5


def shorten(items: Sequence[str]) -> str:
    """The first five items and how many more there are: "a, b, c, d, e and 7 more"."""
    if not items:
        return "nothing"
    shown = ", ".join(shorten_text(item) for item in items[:_SHOWN])
    return shown if len(items) <= _SHOWN else f"{shown} and {len(items) - _SHOWN} more"
