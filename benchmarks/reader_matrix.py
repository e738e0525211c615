"""The matrix of docs/readers.md: what each other reader did with what is written for it, from the committed results.

    python benchmarks/reader_matrix.py            # writes the table into docs/readers.md
    python benchmarks/reader_matrix.py --check    # exit 1 if the table is another

Any results file (benchmarks/results/*.json) with a list `matrix` of rows takes part. A row is what a script measured,
never entered by hand. Its fields:

    artifact    what was read, in words: "r1v-nano int4-awq", "r1v-nano int8-smoothquant, language model only"
    target      what wrote it: a target's name, or "checkpoint" for a checkpoint as it is
    precision   the recipe, or the type: "int4-awq", "bf16", "Q4_K_M"
    reader      "vLLM", "llama.cpp", "compressed-tensors" ...
    version     of the reader: "0.32.0"
    loads       true, or false: the reader refused it
    computes    true, or false: it gave no answers
    equal, of   how many of the answers, or tensors, equal this package's own; null where nothing was computed
    error       the reader's own words; there must be some where it did not load or compute
    device      optional: where the reader ran, where that decides what it computes: "CPU", "CPU, AMX kernels"
    compared    optional: "answers" (the default: greedy answers, token for token) or "tensors"
    formats     optional: the names that r1v_export/targets/readers.py knows the formats in it by

Further fields are the script's own. Of several rows of one artifact, target, reader, version and device, the newest
file's is taken.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).parents[1]
RESULTS = PROJECT / "benchmarks/results"
DOCUMENT = PROJECT / "docs/readers.md"
BEGIN = "<!-- begin: written by benchmarks/reader_matrix.py -->"
END = "<!-- end -->"

FIELDS: dict[str, type | tuple[type, ...]] = {
    "artifact": str,
    "target": str,
    "precision": str,
    "reader": str,
    "version": str,
    "loads": bool,
    "computes": bool,
    "equal": (int, type(None)),
    "of": (int, type(None)),
}
COMPARED = ("answers", "tensors")
WORDS_SHOWN = 220
"""Characters of a reader's error that the table shows."""


def check(row: dict[str, Any], where: str) -> None:
    """Hold a row to the shape above.

    Raises:
        ValueError: a field is missing or of another type, or contradicts another.
    """
    for field, kinds in FIELDS.items():
        if field not in row or not isinstance(row[field], kinds) or (isinstance(row[field], bool) != (kinds is bool)):
            raise ValueError(f"{where}: {field} is missing or of another type: {row}")
    if row["computes"] and not row["loads"]:
        raise ValueError(f"{where}: computed, but not loaded: {row}")
    if row["computes"] != (row["equal"] is not None) or (row["equal"] is None) != (row["of"] is None):
        raise ValueError(f"{where}: equal and of are for what was computed, and only for it: {row}")
    if row["computes"] and not 0 <= row["equal"] <= row["of"]:
        raise ValueError(f"{where}: more equal than there are: {row}")
    if not row["computes"] and not row.get("error"):
        raise ValueError(f"{where}: a no without the reader's own words: {row}")
    if row.get("compared", COMPARED[0]) not in COMPARED:
        raise ValueError(f"{where}: compared is one of {COMPARED}: {row}")


def rows(folder: Path = RESULTS) -> list[dict[str, Any]]:
    """Every row of every results file, checked, the newest of each; in the order of the table."""
    found: dict[tuple[str, ...], dict[str, Any]] = {}
    for path in sorted(folder.glob("*.json")):  # the names begin with the date
        for row in matrix_of(path):
            found[tuple(row.get(field, "") for field in ("target", "reader", "version", "artifact", "device"))] = row
    return [found[key] for key in sorted(found)]


def matrix_of(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a results file; none if it is of another kind.

    Raises:
        ValueError: a row is not of the shape above.
    """
    content = json.loads(path.read_text(encoding="utf-8"))
    for row in content.get("matrix", []) if isinstance(content, dict) else []:
        check(row, path.name)
        yield row


def table(found: list[dict[str, Any]]) -> str:
    """The matrix in Markdown."""
    lines = ["| target | artifact | reader | loads | computes | equal |", "|---|---|---|---|---|---|"]
    for row in found:
        target = row["target"] if row["target"] == "checkpoint" else f"`{row['target']}`"
        device = f", {row['device']}" if "device" in row else ""
        lines.append(f"| {target} | {row['artifact']} | {row['reader']} {row['version']}{device} | {_cells(row)} |")
    return "\n".join(lines)


def _cells(row: dict[str, Any]) -> str:
    if not row["loads"]:
        return f"no: {_quoted(row['error'])} | | "
    if not row["computes"]:
        return f"yes | no: {_quoted(row['error'])} | "
    unit = " tensors" if row.get("compared") == "tensors" else ""
    return f"yes | yes | {row['equal']} of {row['of']}{unit}"


def _quoted(error: str) -> str:
    """The reader's words as code in one table cell."""
    words = " ".join(error.replace("`", "'").replace("|", "/").split())
    shown = words if len(words) <= WORDS_SHOWN else words[:WORDS_SHOWN].rsplit(" ", 1)[0] + " ..."
    return f"`{shown}`"


def written(document: str, matrix: str) -> str:
    """The document with `matrix` between its marks."""
    before, rest = document.split(BEGIN)
    return f"{before}{BEGIN}\n{matrix}\n{END}{rest.split(END, 1)[1]}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if the table is another")
    arguments = parser.parse_args()
    is_there = DOCUMENT.read_text(encoding="utf-8")
    wanted = written(is_there, table(rows()))
    if arguments.check and wanted != is_there:
        sys.exit(f"{DOCUMENT.relative_to(PROJECT)} differs from the results; run benchmarks/reader_matrix.py")
    DOCUMENT.write_text(wanted, encoding="utf-8")


if __name__ == "__main__":
    main()
