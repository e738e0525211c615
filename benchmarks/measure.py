"""What the benchmarks share: fair turns, medians, and a results file that says what it was measured on."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import psutil

RESULTS = Path(__file__).parent / "results"
# Processes that are measured start with their modules' bytecode, as installed ones do: without it a start takes half as
# long again.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
_PRODUCTS = {"avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16"}


class OthersLoad:
    """How many cores processes other than this one and its descendants keep busy, from the making of this object on."""

    def __init__(self) -> None:
        self._started, self._seconds = time.monotonic(), self._others_seconds()

    def cores(self) -> float:
        """The mean so far."""
        return round((self._others_seconds() - self._seconds) / (time.monotonic() - self._started), 2)

    @staticmethod
    def _others_seconds() -> float:
        every = psutil.cpu_times()
        busy = every.user + every.nice + every.system + every.irq + every.softirq
        return busy - sum(os.times()[:4]) - sum(map(_processor_seconds, psutil.Process().children(recursive=True)))


def _processor_seconds(process: psutil.Process) -> float:
    try:
        return sum(process.cpu_times()[:4])
    except psutil.NoSuchProcess:  # its parent has waited for it since, and is charged with it
        return 0.0


_OTHERS = OthersLoad()
"""Since the benchmark's start."""


def interleaved(contenders: Mapping[str, Callable[[], dict[str, float]]], repeats: int) -> dict[str, dict[str, Any]]:
    """Let contenders take turns `repeats` times, after one unmeasured turn each; medians and all readings.

    Turns, and not one contender after the other, because a machine's speed drifts: what the ratio compares is then
    what was measured seconds apart.
    """
    readings: dict[str, dict[str, list[float]]] = {name: {} for name in contenders}
    for turn in range(repeats + 1):
        for name, measure in contenders.items():
            for quantity, value in measure().items():
                if turn:
                    readings[name].setdefault(quantity, []).append(value)
                    print(f"  {name:24} {quantity:24} {value:10.2f}", file=sys.stderr, flush=True)
    return {
        name: {quantity: {"median": statistics.median(values), "all": values} for quantity, values in each.items()}
        for name, each in readings.items()
    }


def ratio(results: Mapping[str, Any], ours: str, peer: str, quantity: str) -> float:
    """Our median over the peer's."""
    return round(results[ours][quantity]["median"] / results[peer][quantity]["median"], 3)


def machine(packages: tuple[str, ...]) -> dict[str, Any]:
    """What a reading depends on."""
    return {
        "cpu": _cpu_model(),
        "instructions": _instructions(),
        "physical_cores": psutil.cpu_count(logical=False),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "load_average_before": psutil.getloadavg()[0],
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in packages},
        "commit": commit(),
    }


def write_results(what: str, content: Mapping[str, Any], folder: Path = RESULTS) -> Path:
    """Write `<date>-<what>.json`, with how many cores others kept busy during the run."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{datetime.datetime.now(tz=datetime.timezone.utc):%Y-%m-%d}-{what}.json"
    content = {**content, "others_cores": _OTHERS.cores()}
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return path


def newest_results(what: str, folder: Path = RESULTS) -> dict[str, Any]:
    """The content of the newest `<date>-<what>.json`."""
    path = sorted(folder.glob(f"????-??-??-{what}.json"))[-1]
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def _cpu_model() -> str:
    return _of_cpu("model name") or platform.processor()


def _instructions() -> list[str]:
    """Sets of instructions that products are multiplied with, where Linux names them."""
    return sorted(_PRODUCTS.intersection(_of_cpu("flags").split()))


def _of_cpu(what: str) -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if sys.platform == "linux" else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith(what)), "")


def commit(checkout: Path = Path(__file__).parent) -> str:
    """The commit of a checkout, and whether it was changed."""
    command = ["git", "-C", str(checkout), "describe", "--always", "--dirty"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
