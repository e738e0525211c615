"""Hostile and damaged inputs end in an error of ours below 4 kB, or open and are usable: no crash, hang or gigabytes.

The inputs depend on their seeds alone, so a minute of CI is the same everywhere. By hand, for an hour of new ones:

    R1V_FUZZ_SECONDS=3600 python -m pytest tests/fuzz --timeout 0

A defect is printed with its surface and seed; its input goes into `corpus/<surface>/`, where it stays a test.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fuzz.pool import Worker

INPUTS_PER_WEIGHT = 16
CORPUS = Path(__file__).parent / "corpus"
SECONDS = float(os.environ.get("R1V_FUZZ_SECONDS", "0"))
FIRST_SEED = int(os.environ.get("R1V_FUZZ_SEED", "0"))
RIGHT = ("opened", "refused")


@pytest.fixture(scope="module")
def worker(tiny_model: Path, tiny_built: Path) -> Iterator[Worker]:
    started = Worker(tiny_model, tiny_built)
    yield started
    started.close()


def test_no_input_crashes_hangs_or_takes_gigabytes(worker: Worker) -> None:
    defects: list[str] = []
    counts: Counter[str] = Counter()
    seen: Counter[str] = Counter()
    start, round_ = time.monotonic(), 0
    while round_ < INPUTS_PER_WEIGHT or time.monotonic() - start < SECONDS:
        for name, weight in worker.weights.items():
            for number in range(weight):
                job = {"surface": name, "seed": FIRST_SEED + round_ * weight + number}
                result = worker.open(job)
                counts[result["outcome"]] += 1
                seen[f"{name}: {result['outcome']}"] += 1
                if result["outcome"] not in RIGHT:
                    defects.append(f"{json.dumps(job)}: {result['outcome']}\n{result['detail']}")
        round_ += 1
    print(f"{sum(counts.values())} inputs: {dict(counts)}", *sorted(seen.items()), sep="\n")
    assert not defects, f"{len(defects)} defects\n" + "\n".join(defects[:20])
    assert counts["refused"] > 100
    assert counts["opened"] > 20


def test_what_is_not_changed_opens(worker: Worker) -> None:
    """Else a surface would refuse all inputs for a reason of its own, and prove nothing."""
    results = {name: worker.open({"surface": name, "sound": True}) for name in worker.weights}
    assert {name: result["detail"] for name, result in results.items() if result["outcome"] != "opened"} == {}


@pytest.mark.parametrize("path", sorted(CORPUS.glob("*/*")), ids=lambda path: f"{path.parent.name}/{path.name}")
def test_inputs_that_were_defects_once_are_refused_or_usable(path: Path, worker: Worker) -> None:
    surface = next(name for name in worker.weights if name.replace("/", "-") == path.parent.name)
    result = worker.open({"surface": surface, "file": str(path)})
    assert result["outcome"] in RIGHT, result["detail"]
