"""Numbers of bytes as users type them: `4GiB`, `20GB`, `512MB`."""

from __future__ import annotations

import re

from r1v_export.strict import SettingError

UNITS = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}

NAMES = {"GB": "gigabytes", "B": "bytes"}
_SURELY_BYTES = 1e6
"""Nobody means so many gigabytes, nor fewer bytes."""

_NUMBER = re.compile(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)")
_EXPECTED = f"a number and a unit: {', '.join(UNITS)}"


def parse_size(text: str) -> int:
    """The number of bytes.

    Raises:
        SettingError: not a number with one of `UNITS`; says what a number without one probably means.
    """
    match = _NUMBER.fullmatch(text.strip())
    if match is None or (match[2] and match[2] not in UNITS):
        fix = "write a number and a unit, such as 4GiB"
        raise SettingError(f"{text!r} is not a number of bytes", expected=_EXPECTED, found=text, fix=fix)
    if not match[2]:
        unit = "GB" if float(match[1]) < _SURELY_BYTES else "B"
        fix = f"write {match[1]}{unit} for {NAMES[unit]}"
        raise SettingError(f"{text!r} has no unit", expected=_EXPECTED, found=text, fix=fix)
    return round(float(match[1]) * UNITS[match[2]])
