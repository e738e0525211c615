"""From a sensitivity table to a precision for every module, within a budget of size or of divergence.

Divergences of modules are added up: what quantizing all of them costs is taken to be the sum of what each costs alone.
That holds while they are small; `mixed.search` measures the result and corrects the budget where it did not.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from r1v_export.byte_size import parse_size
from r1v_export.count import Count
from r1v_export.errors import UsageError
from r1v_export.quantization.mixed_precision.sensitivity import FLOAT, Candidate, SensitivityTable
from r1v_export.strict import SettingError

_SYNTAX = "kl=0.02 or size=20GB"


@dataclass(frozen=True)
class Budget:
    """`kl`: at most so much divergence (nats), and as small as can be; `size`: at most so many bytes, and as good."""

    kind: Literal["kl", "size"]
    limit: float

    @classmethod
    def parse(cls, text: str) -> Budget:
        """Read `kl=0.02` or `size=20GB`.

        Raises:
            UsageError: anything else, or a limit that is not above zero.
        """
        kind, _, amount = text.strip().partition("=")
        if kind == "size":
            try:
                limit = float(parse_size(amount))
            except SettingError as error:
                what = f"Invalid --budget: {error}."
                raise UsageError(what, expected=_SYNTAX, found=text, fix=error.fix) from error
        elif kind == "kl" and re.fullmatch(r"\d+(\.\d+)?(e-?\d+)?", amount):
            limit = float(amount)
        else:
            fix = "limit the divergence with kl=, or the bytes with size="
            raise UsageError("Invalid --budget.", expected=_SYNTAX, found=text, fix=fix)
        if not 0 < limit < math.inf:
            fix = "choose a larger limit"
            raise UsageError("--budget must be above zero.", expected=_SYNTAX, found=text, fix=fix)
        return cls("kl" if kind == "kl" else "size", limit)

    def __str__(self) -> str:
        return f"kl={self.limit:g}" if self.kind == "kl" else f"size={self.limit:.0f}B"


class Assignment(NamedTuple):
    """A precision for every module, and what it is predicted to come to."""

    precisions: dict[str, str]
    size_bytes: int
    loss: float
    """Summed divergence; without one in the table, summed noise-to-signal ratio."""


def choose(table: SensitivityTable, budget: Budget) -> Assignment:
    """A precision for every module of a table.

    Starts with every module in the precision that loses least and takes, one after the other, the steps down that save
    most bytes for what they lose; steps that no later one makes better (the lower convex hull of each module's
    options) are the only ones considered. With a budget of divergence, a step that does not fit is skipped.

    Raises:
        UsageError: the smallest precisions together are larger than the budget, or the table has no divergences for a
            budget of them.
    """
    by_module: dict[str, list[Candidate]] = {}
    for option in table.options:
        by_module.setdefault(option.module, []).append(option)
    if budget.kind == "kl" and any(option.kl is None for option in table.options):
        raise UsageError(
            "A budget of divergence needs a table with divergences.",
            expected="kl of every option",
            found="signal-to-noise ratios alone",
            fix="give a budget of size, or measure on a machine that holds the model",
        )
    chosen = {module: _best(options) for module, options in by_module.items()}
    size = table.fixed_bytes + sum(option.size_bytes for option in chosen.values())
    loss, blocked = sum(map(loss_of, chosen.values())), set[str]()
    for step in sorted(step for options in by_module.values() for step in _steps(options)):
        if budget.kind == "size" and size <= budget.limit:
            break
        if step.module in blocked:
            continue
        if budget.kind == "kl" and loss + step.loss > budget.limit:
            blocked.add(step.module)
            continue
        chosen[step.module] = by_module[step.module][step.option]
        size, loss = size - step.saved_bytes, loss + step.loss
    if budget.kind == "size" and size > budget.limit:
        raise UsageError(
            "The budget is smaller than the model in its smallest precisions.",
            expected=f"at least {Count(size, 'byte')}",
            found=str(Count(round(budget.limit), "byte")),
            fix=f"give --budget size={math.ceil(size / 1e6)}MB or more",
        )
    precisions = {module: option.precision for module, option in chosen.items()}
    if budget.kind == "size":
        return _spend_the_rest(table, by_module, precisions, budget.limit)
    return _assignment(table, by_module, precisions)


def loss_of(option: Candidate) -> float:
    """Divergence, or else the noise-to-signal ratio."""
    if option.kl is not None:
        return option.kl
    return 0.0 if option.precision == FLOAT else 10 ** (-option.snr_db / 10)


class _Step(NamedTuple):
    """One step down a module's hull, ordered by what it loses for each byte that it saves."""

    loss_per_byte: float
    order: int
    module: str
    option: int
    loss: float
    saved_bytes: int


def _best(options: Sequence[Candidate]) -> Candidate:
    return min(options, key=lambda option: (loss_of(option), option.size_bytes))


def _steps(options: Sequence[Candidate]) -> list[_Step]:
    """From the best option to the smallest along the lower convex hull; each step loses more per byte than the last."""
    steps: list[_Step] = []
    current = _best(options)
    while True:
        smaller = [(i, o) for i, o in enumerate(options) if o.size_bytes < current.size_bytes]
        if not smaller:
            return steps

        def loss_per_byte(entry: tuple[int, Candidate], current: Candidate = current) -> tuple[float, int]:
            option = entry[1]
            saved = current.size_bytes - option.size_bytes
            return (loss_of(option) - loss_of(current)) / saved, option.size_bytes

        index, option = min(smaller, key=loss_per_byte)
        saved, loss = current.size_bytes - option.size_bytes, loss_of(option) - loss_of(current)
        steps.append(_Step(loss / saved, len(steps), option.module, index, loss, saved))
        current = option


def _spend_the_rest(
    table: SensitivityTable, by_module: Mapping[str, Sequence[Candidate]], precisions: dict[str, str], limit: float
) -> Assignment:
    """Use what the last, large step left of a budget of size: the better options that still fit, best gain first."""
    assignment = _assignment(table, by_module, precisions)
    while True:
        fitting = []
        for module, options in by_module.items():
            current = next(option for option in options if option.precision == precisions[module])
            for option in options:
                gain = loss_of(current) - loss_of(option)
                if gain > 0 and assignment.size_bytes - current.size_bytes + option.size_bytes <= limit:
                    fitting.append((-gain, module, option.precision))
        if not fitting:
            return assignment
        _, module, precision = min(fitting)
        precisions = precisions | {module: precision}
        assignment = _assignment(table, by_module, precisions)


def _assignment(
    table: SensitivityTable, by_module: Mapping[str, Sequence[Candidate]], precisions: Mapping[str, str]
) -> Assignment:
    chosen = [
        option for module, options in by_module.items() for option in options if option.precision == precisions[module]
    ]
    size = table.fixed_bytes + sum(option.size_bytes for option in chosen)
    return Assignment(dict(precisions), size, sum(map(loss_of, chosen)))
