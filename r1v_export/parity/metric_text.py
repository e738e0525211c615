"""Metrics as people read them, in reports, on terminals and in comparisons of bundles alike."""

from __future__ import annotations

import math

from r1v_export.parity.metrics import SHARES

_DIGITS_OF_A_DOUBLE = 17
"""So many tell every two numbers of float64 apart."""


def share(part: float, decimals: int = 2) -> str:
    """A share of 1 in percent, with at most that many decimals; 100 % only if it is all."""
    return "100 %" if part == 1 else f"{math.floor(part * 10 ** (decimals + 2)) / 10**decimals:.{decimals + 3}g} %"


def short(value: float, digits: int = 3) -> str:
    """A number in that many significant digits, with its last zeros, such as `0.0120`; 0 alone is `0`."""
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    return "0" if value == 0 else f"{value:#.{digits}g}".removesuffix(".")


def magnitude(value: float) -> str:
    """A size of a tensor's values: in full below a million, as is the largest number of float16, 65504."""
    return f"{value:.0f}" if 1000 <= value < 1e6 else short(value)


def metric_text(value: float, metric: str, limit: float | None = None) -> str:
    """A metric's value, in as many digits as show on which side of its limit it is: what is beyond never reads as what
    is allowed."""
    text = ""
    for more in range(_DIGITS_OF_A_DOUBLE - 2):
        text = _metric_text(value, metric, more)
        if limit is None or math.isinf(value) or metric in SHARES or _side(float(text), limit) == _side(value, limit):
            break
    return text


def _metric_text(value: float, metric: str, more: int) -> str:
    """A metric's value with that many digits more than usual."""
    if metric in SHARES:
        return share(value)
    if metric == "min_row_cosine":
        return f"{value:.{6 + more}f}"
    if metric == "snr_db" and math.isfinite(value):
        return f"{value:.{1 + more}f}"
    return short(value, 3 + more)


def _side(value: float, limit: float) -> int:
    return (value > limit) - (value < limit)


def limit_text(limit: float, metric: str) -> str:
    """A metric's limit, as it stands in the table of tolerances."""
    return share(limit) if metric in SHARES else f"{limit:g}"


def distinct_shares(first: float, second: float, decimals: int = 2) -> tuple[str, str]:
    """Two shares of 1 in percent, with as many decimals as tell them apart, that many at least."""
    texts = share(first, decimals), share(second, decimals)
    if first == second or texts[0] != texts[1] or decimals == _DIGITS_OF_A_DOUBLE:
        return texts
    return distinct_shares(first, second, decimals + 1)


def distinct(first: float, second: float, digits: int = 3) -> tuple[str, str]:
    """Two numbers in as many digits as tell them apart, that many at least."""
    texts = short(first, digits), short(second, digits)
    if first == second or texts[0] != texts[1] or digits == _DIGITS_OF_A_DOUBLE:
        return texts
    return distinct(first, second, digits + 1)
