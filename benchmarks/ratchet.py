"""Nothing gets slower unnoticed: a few paths measured, and compared with what is committed.

What one thread does is counted in instructions (callgrind), which a busy machine does not change. What takes several
threads, or a process, is timed by turns with a yardstick, and the median of the ratios is compared: that needs a quiet
machine. Exit code 1 and a table where something is above its bound.

    python benchmarks/ratchet.py                    # before and after a change of runner, lowering or kernels
    python benchmarks/ratchet.py --only instructions --only modules
    python benchmarks/ratchet.py --update           # what is measured becomes what is committed

Needs valgrind (`apt-get install valgrind`). Valgrind shows programs a processor without AVX-512: what is counted are
the kernels for AVX2.
"""

from __future__ import annotations

import functools
import importlib.metadata
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import click

PROJECT = Path(__file__).parents[1]
COMMITTED = PROJECT / "benchmarks" / "results" / "ratchet.json"
PATHS = PROJECT / "benchmarks" / "ratchet_paths.py"
COUNTED = {
    "help": ("help",),
    "runtime": ("open", "preprocess", "prompt", "decode-fp32", "decode-int4", "sample", "stream"),
    "compiler": ("round-fp8", "round-int4"),
}
"""Paths by the processes that they share, in the order of `ratchet_paths.GROUPS`."""
COUNTED_BEFORE = {"help"}
"""Of these, what comes before the first mark counts: a process from its start."""
PAIRED = ("answers-fp32", "answers-int4", "help-process")
TOOLS = ("onnxruntime", "numpy", "pillow", "tokenizers", "torch", "click", "pydantic")
KINDS = ("instructions", "modules", "ratio")
FLOORS = {"instructions": 0.01, "modules": 0.01, "ratio": 0.1}
"""The bound of a measure whose repeats are all equal, as a share."""
SPREADS = 3
"""A bound is at least so many times what repeats differed by when it was committed."""


@dataclass(frozen=True)
class Measure:
    """One reading.

    Attributes:
        kind: `instructions`, `modules` (imported by `r1v-export --help`), or `ratio` (to a yardstick's time).
        value: less is better.
        spread: the largest of the repeats over the smallest, minus 1.
    """

    kind: str
    value: float
    spread: float

    @property
    def bound(self) -> float:
        """The share by which a later reading may be above this one."""
        return max(FLOORS[self.kind], SPREADS * self.spread)


@dataclass(frozen=True)
class Row:
    """A path's committed and measured value.

    Attributes:
        ratio: measured over committed; None where one of them is missing.
    """

    name: str
    committed: Measure | None
    measured: Measure | None

    @property
    def ratio(self) -> float | None:
        if self.committed is None or self.measured is None:
            return None
        return self.measured.value / self.committed.value

    @property
    def verdict(self) -> str:
        """`ok`, `slower`, `faster` (by more than the bound), `new` (not committed) or `missing` (not measured)."""
        if self.committed is None or self.measured is None or self.ratio is None:
            return "new" if self.committed is None else "missing"
        bound = self.committed.bound
        if self.ratio > 1 + bound:
            return "slower"
        return "faster" if self.ratio < 1 - bound else "ok"


def compare(
    committed: Mapping[str, Measure], measured: Mapping[str, Measure], kinds: Sequence[str] = KINDS
) -> list[Row]:
    """A row for each path of these kinds that is committed or measured, in the order of the measured ones.

    Raises:
        ValueError: a path was measured as something else than is committed.
    """
    rows = [Row(name, committed.get(name), measure) for name, measure in measured.items()]
    rows += [Row(name, measure, None) for name, measure in committed.items() if name not in measured]
    for row in rows:
        if row.committed and row.measured and row.committed.kind != row.measured.kind:
            raise ValueError(f"{row.name}: {row.measured.kind} measured, {row.committed.kind} committed; use --update")
    return [row for row in rows if any(each.kind in kinds for each in (row.committed, row.measured) if each)]


def failed(rows: Sequence[Row]) -> bool:
    """Whether something got slower, or is no longer measured."""
    return any(row.verdict in ("slower", "missing") for row in rows)


def table(rows: Sequence[Row]) -> str:
    """The rows for people."""
    lines = [f"{'path':14} {'kind':13} {'committed':>14} {'measured':>14} {'ratio':>7} {'bound':>6}  verdict"]
    for row in rows:
        shown = [_number(each) for each in (row.committed, row.measured)]
        ratio = "–" if row.ratio is None else f"{row.ratio:.3f}"
        bound = "–" if row.committed is None else f"{row.committed.bound:.1%}"
        kind = (row.measured or row.committed or Measure("", 0, 0)).kind
        lines.append(f"{row.name:14} {kind:13} {shown[0]:>14} {shown[1]:>14} {ratio:>7} {bound:>6}  {row.verdict}")
    return "\n".join(lines)


def _number(measure: Measure | None) -> str:
    if measure is None:
        return "–"
    return f"{measure.value:.3f}" if measure.kind == "ratio" else f"{measure.value:,.0f}"


def repeated(kind: str, values: Sequence[float]) -> Measure:
    """One measure of several readings: their median."""
    return Measure(kind, statistics.median(values), round(max(values) / min(values) - 1, 6))


def read(path: Path) -> tuple[dict[str, Measure], dict[str, str]]:
    """What is committed: measures by path, and the versions of the tools that they were measured with."""
    content = json.loads(path.read_text(encoding="utf-8"))
    fields = ("kind", "value", "spread")
    measures = {name: Measure(**{key: each[key] for key in fields}) for name, each in content["measures"].items()}
    return measures, content["tools"]


def write(path: Path, measures: Mapping[str, Measure], tools: Mapping[str, str]) -> None:
    """Commit measures; each says its bound, for readers."""
    entries = {name: asdict(measure) | {"bound": round(measure.bound, 4)} for name, measure in measures.items()}
    path.write_text(json.dumps({"tools": dict(tools), "measures": entries}, indent=2) + "\n", encoding="utf-8")


def environment(threads: int) -> dict[str, str]:
    """Of a measured process: this checkout, its number of threads, hashes that are the same in every run, and leave to
    keep modules' bytecode."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return kept | {"PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": str(threads), "PYTHONHASHSEED": "0"}


def build_bundles(work: Path) -> None:
    """Build r1v-nano in float32 and int4 with this checkout's code; what has not changed is kept."""
    for folder, chosen in (("fp32", ["--precision", "fp32"]), ("int4", ["--recipe", "int4-rtn"])):
        command = [sys.executable, "-m", "r1v_export.cli.main", "build", "r1v-nano", *chosen, "--no-parity"]
        _run([*command, "-o", str(work / folder)], threads=1)


def count_instructions(group: str, work: Path) -> dict[str, float]:
    """Instructions of each path of a group, of the main thread.

    ONNX Runtime has a thread of its own that wakes up now and then, half a million instructions in one path or another.
    """
    # A run before writes the bytecode of modules that have changed: to compile them takes `--help` a third more.
    _run([sys.executable, str(PATHS), group, str(work)], threads=1)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "counts"
        tool = ["valgrind", "--tool=callgrind", "--separate-threads=yes", "--dump-before=getppid"]
        _run([*tool, f"--callgrind-out-file={out}", sys.executable, str(PATHS), group, str(work)], threads=1)
        counts = {}
        for index, name in enumerate(COUNTED[group]):
            part = out.with_name(f"counts.{1 if name in COUNTED_BEFORE else 2 * index + 2}-01")
            counts[name] = parse_total(part.read_text(encoding="utf-8", errors="replace"))
        return counts


def parse_total(counts: str) -> int:
    """The total of a file of callgrind.

    Raises:
        ValueError: there is none.
    """
    found = re.search(r"^totals: (\d+)", counts, re.MULTILINE)
    if found is None:
        raise ValueError("callgrind wrote no total: was the mark never reached?")
    return int(found.group(1))


def imported_modules() -> dict[str, float]:
    """How many modules `r1v-export --help` imports."""
    code = "import sys; from r1v_export.cli.main import run; run(['--help'])"
    output = _run([sys.executable, "-c", f"{code}; print(); print(len(sys.modules))"], threads=1)
    return {"help-imports": int(output.split()[-1])}


def paired_ratio(name: str, work: Path, turns: int) -> dict[str, float]:
    """The median, over turns, of a path's time to its yardstick's."""
    output = _run([sys.executable, str(PATHS), name, str(work), str(turns)], threads=os.cpu_count() or 1)
    return {name: statistics.median(ours / yardstick for ours, yardstick in json.loads(output.splitlines()[-1]))}


def _run(command: list[str], threads: int) -> str:
    done = subprocess.run(command, env=environment(threads), capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
    return done.stdout


def measure(work: Path, kinds: Sequence[str], repeats: int, turns: int) -> dict[str, Measure]:
    """All paths of these kinds."""
    readers: dict[str, list[Callable[[], dict[str, float]]]] = {
        "instructions": [functools.partial(count_instructions, group, work) for group in COUNTED],
        "modules": [imported_modules],
        "ratio": [functools.partial(paired_ratio, name, work, turns) for name in PAIRED],
    }
    measures = {}
    for kind in kinds:
        for read_once in readers[kind]:
            readings = [read_once() for _ in range(repeats)]
            for name in readings[0]:
                found = measures[name] = repeated(kind, [reading[name] for reading in readings])
                print(f"{name}: {_number(found)}, spread {found.spread:.3%}", file=sys.stderr, flush=True)
    return measures


def tool_versions() -> dict[str, str]:
    """Of what the counts depend on, apart from this checkout."""
    valgrind = subprocess.run(["valgrind", "--version"], capture_output=True, text=True, check=True).stdout.strip()
    versions = {name: importlib.metadata.version(name) for name in TOOLS}
    return {"python": ".".join(map(str, sys.version_info[:3])), "valgrind": valgrind, **versions}


@click.command()
@click.option("--only", "kinds", type=click.Choice(KINDS), multiple=True, default=KINDS, help="What to measure.")
@click.option("--update", is_flag=True, help="Commit what is measured; kinds that are not measured stay.")
@click.option("--repeats", type=click.IntRange(1), default=None, help="Readings of each. [default: 1; with --update 2]")
@click.option("--turns", default=15, show_default=True, help="Of a path and its yardstick.")
@click.option("--work", type=click.Path(path_type=Path), default=Path("/tmp/r1v-ratchet"), show_default=True)
@click.option("--committed", type=click.Path(path_type=Path), default=COMMITTED, show_default=True)
def main(kinds: tuple[str, ...], update: bool, repeats: int | None, turns: int, work: Path, committed: Path) -> None:
    if shutil.which("valgrind") is None:
        raise SystemExit("valgrind is not installed: apt-get install valgrind")
    if not update and not committed.exists():
        raise SystemExit(f"{committed} is missing: write it with --update")
    before, tools = read(committed) if committed.exists() else ({}, {})
    print(f"load average: {os.getloadavg()[0]:.2f}", file=sys.stderr)
    build_bundles(work)
    measured = measure(work, kinds, repeats or (2 if update else 1), turns)
    now = tool_versions()
    for name in sorted(now.keys() | tools.keys()):
        if tools and tools.get(name) != now.get(name):
            print(f"note: {name} was {tools.get(name)} and is {now.get(name)}: counts may differ by that alone")
    rows = compare(before, measured, kinds)
    print(table(rows))
    if update:
        kept = {name: each for name, each in before.items() if each.kind not in kinds}
        write(committed, {**measured, **kept}, now)
    elif failed(rows):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
