"""Numbers of bytes as users type them: `4GiB`, `20GB`, `512MB`."""

from __future__ import annotations

import re

UNITS = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}

_NUMBER = re.compile(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)")


def parse_size(text: str) -> int:
    """The number of bytes; a number without a unit is of bytes.

    Raises:
        ValueError: not a number with one of `UNITS`.
    """
    match = _NUMBER.fullmatch(text.strip())
    unit = UNITS.get(match[2] or "B") if match else None
    if match is None or unit is None:
        raise ValueError(f"{text!r} is not a number of bytes, such as 4GiB; units are {', '.join(UNITS)}")
    return round(float(match[1]) * unit)
