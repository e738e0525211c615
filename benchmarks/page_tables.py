"""What tables.py and tables_detail.py share: results files, columns of ratios, and marked places of a page."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from measure import RESULTS

DOCS = Path(__file__).parents[1] / "docs"
PLACE = "<!-- {name}: written by benchmarks/tables.py -->"
END = "<!-- end -->"


@dataclass(frozen=True)
class Results:
    """A results file.

    Args:
        script: that wrote it.
    """

    path: Path
    script: str
    content: Mapping[str, Any]

    def __getitem__(self, key: str) -> Any:
        return self.content[key]

    @property
    def link(self) -> str:
        """From a page to the file."""
        folder = "" if self.path.parent.name == RESULTS.name else f"{self.path.parent.name}/"
        return f"../benchmarks/results/{folder}{self.path.name}"

    @property
    def conditions(self) -> str:
        """Script, file, processor and load, as the page has them."""
        machine = self.content.get("machine", self.content)  # older files have it at the top
        cpu = machine["cpu"].replace("(R)", "").removesuffix(" Processor")
        if machine.get("instructions"):  # not in older files
            cpu += f" ({', '.join(machine['instructions'])})"
        parts = [value for key, value in self.content.items() if key != "machine"]  # the rest is what was measured
        readings = [load for name in ("load_average", "load_average_before") for load in _readings(parts, name)]
        others = [*_readings(self.content, "others_cores")]
        # Clocks of processes and of the machine differ by a few hundredths of a second.
        busy = f", {max(0.0, *others):.2f} cores busy with others" if others else ""
        during = f", {min(readings):.1f} to {max(readings):.1f} while it ran" if readings else ""
        after = f", {machine['load_average_after']:.1f} after" if "load_average_after" in machine else ""
        return (
            f"`{self.script}`, [{self.path.stem}]({self.link}), {cpu}, "
            f"{machine['physical_cores']} cores, load {machine['load_average_before']:.1f} "
            f"before{during}{after}{busy}"
        )


def _readings(content: Any, name: str) -> Iterator[Any]:
    """Every value of a name, wherever it is."""
    if isinstance(content, Mapping):
        for key, value in content.items():
            if key == name:
                yield value
            else:
                yield from _readings(value, name)
    elif isinstance(content, list):
        for value in content:
            yield from _readings(value, name)


def all_results(what: str, script: str, folder: Path = RESULTS, part: str | None = None) -> list[Results]:
    """Every `<date>-<what>.json`, the newest last.

    Args:
        what: may end in `*`, for runs of a part that have a name of their own.
        part: what files must have, where the script can measure parts alone.

    Raises:
        FileNotFoundError: there is none.
    """
    paths = sorted(folder.glob(f"????-??-??-{what}.json"), key=lambda path: path.stem)
    every = [Results(path, script, json.loads(path.read_text(encoding="utf-8"))) for path in paths]
    if not (found := [each for each in every if part is None or each.content.get(part)]):
        having = f" with {part}" if part else ""
        raise FileNotFoundError(f"{folder} has no results named <date>-{what}.json{having}: run benchmarks/{script}")
    return found


def newest(what: str, script: str, folder: Path = RESULTS, part: str | None = None) -> Results:
    """The newest file of `all_results`."""
    return all_results(what, script, folder, part)[-1]


def newest_by_key(what: str, script: str, key: str, folder: Path = RESULTS) -> dict[str, Results]:
    """For each entry of a file's mapping `key` (numbers of tiles, of tokens) the newest file that has it, by number."""
    found = {entry: results for results in all_results(what, script, folder) for entry in results.content.get(key, {})}
    return dict(sorted(found.items(), key=lambda item: int(item[0])))


@dataclass(frozen=True)
class Column:
    """One situation.

    Args:
        values: by system; rates, of which more is better, or sizes.
        reference: the system of ours that others are compared with.
        turns: of which the values are medians.
        is_size: values are shown as they are, and less is better. Otherwise they are shown over the reference's.
        by_turn: the values of each turn, by system, where the file has them.
    """

    title: str
    results: Results
    values: Mapping[str, float]
    reference: str
    turns: int
    is_size: bool = False
    by_turn: Mapping[str, Sequence[float]] = field(default_factory=dict)

    def shown(self) -> dict[str, str]:
        """The cells."""
        base = 1 if self.is_size else self.values[self.reference]
        return {system: f"{value / base:.2f}" for system, value in self.values.items()}

    def cells(self) -> dict[str, str]:
        """The cells, the best in bold."""
        shown = self.shown()
        best = (min if self.is_size else max)(shown.values(), key=float)
        return {system: f"**{cell}**" if cell == best else cell for system, cell in shown.items()}

    def ahead(self) -> dict[str, str]:
        """Systems that are not ours and are shown to be better than the reference."""
        shown, sign = self.shown(), -1 if self.is_size else 1
        ours = sign * float(shown[self.reference])
        return {s: cell for s, cell in shown.items() if not s.startswith("ours") and sign * float(cell) > ours}

    def spread(self, system: str) -> str:
        """The least and the largest ratio to the reference within a turn, in words; "" for less than two turns."""
        ours, theirs = self.by_turn.get(self.reference, ()), self.by_turn.get(system, ())
        if self.is_size or min(len(ours), len(theirs)) < 2:
            return ""
        ratios = [their / our for our, their in zip(ours, theirs, strict=False)]
        return f", by turn {min(ratios):.2f} to {max(ratios):.2f}"


def comparison(columns: Sequence[Column], order: Sequence[str], causes: Mapping[str, str]) -> str:
    """A table of systems by situations, who is ahead of us and why, and where each column is from.

    Args:
        order: of the systems; others follow, under the names that their files give them.
        causes: why a system is ahead, by system.
    """
    order = list(dict.fromkeys([*order, *(system for column in columns for system in column.values)]))
    cells = [column.cells() for column in columns]
    rows = [[s, *(each.get(s, "–") for each in cells)] for s in order if any(s in each for each in cells)]
    parts = [markdown(["", *(column.title for column in columns)], rows)]
    if behind := [*_behind(columns, order, causes)]:
        parts.append("Ahead of ours:\n\n" + "\n".join(behind))
    parts.append("Where the columns are from:\n\n" + "\n".join(_sources(columns)))
    return "\n\n".join(parts)


def _behind(columns: Sequence[Column], order: Sequence[str], causes: Mapping[str, str]) -> Iterator[str]:
    for system in order:
        ahead = [(column, cell) for column in columns if (cell := column.ahead().get(system))]
        where = [f"{cell} ({column.title}{column.spread(system)})" for column, cell in ahead]
        if where:
            yield f"* {system}: {', '.join(where)}. {causes.get(system, 'Cause not known.')}"


def _sources(columns: Sequence[Column]) -> Iterator[str]:
    by_path: dict[Path, list[Column]] = {}
    for column in columns:
        by_path.setdefault(column.results.path, []).append(column)
    for each in by_path.values():
        turns = sorted({column.turns for column in each})
        count = f"turns: {turns[0]}" if len(turns) == 1 else f"turns: {turns[0]} to {turns[-1]}"
        titles = f" ({'; '.join(column.title for column in each)})" if len(by_path) > 1 else ""
        yield f"* {each[0].results.conditions}, {count}{titles}"


def markdown(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table."""
    return "\n".join("| " + " | ".join(row) + " |" for row in [heads, ["---"] * len(heads), *rows])


def filled(page: str, tables: Mapping[str, str]) -> str:
    """A page with its marked places filled.

    Raises:
        ValueError: the page lacks a place, or has one that nothing fills.
    """
    for name, table in tables.items():
        before, mark, rest = page.partition(PLACE.format(name=name))
        _, end, after = rest.partition(END)
        if not mark or not end:
            raise ValueError(f"the page has no place {PLACE.format(name=name)} ... {END}: add it")
        page = f"{before}{mark}\n{table}\n{end}{after}"
    if page.count(END) != len(tables):
        raise ValueError(f"the page has {page.count(END)} marked places, and {len(tables)} tables are written")
    return page
