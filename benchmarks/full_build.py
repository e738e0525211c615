"""One r1v-export command in a memory cgroup (version 1, as root): wall and CPU time, peaks, bytes, stages, parity.

What ran is added to benchmarks/results/<date>-38b.json under NAME; the command's own output goes to NAME.log in the
working directory. Loads are recorded, because times mean little where other programs run.

    python benchmarks/full_build.py NAME [--memory 6000000000] -- build MODEL --precision int4 ... -o OUT
    python benchmarks/full_build.py NAME [--memory 6000000000] -- check OUT --model MODEL ...
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from measure import commit, machine, newest_results, write_results

CGROUPS = Path("/sys/fs/cgroup/memory")
RESULTS = "38b"
_BOUNDARIES = ("vision", "projector", "embeds", "prefill", "decode", "end_to_end")


class Watch:
    """Reads a cgroup's anonymous memory and the machine's load while a command runs."""

    def __init__(self, group: Path) -> None:
        self.group, self.anonymous, self.loads = group, 0, [os.getloadavg()[0]]
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        readings = 0
        while not self._ended.wait(0.05):
            lines = (self.group / "memory.stat").read_text(encoding="ascii").splitlines()
            now = next(int(line.split()[1]) for line in lines if line.startswith("total_rss "))
            self.anonymous, readings = max(self.anonymous, now), readings + 1
            if readings % 200 == 0:
                self.loads.append(os.getloadavg()[0])


@contextmanager
def cgroup(name: str, memory: int) -> Iterator[Path]:
    """A memory cgroup, removed at the end; one that a killed run left is used again."""
    group = CGROUPS / name
    group.mkdir(exist_ok=True)
    try:
        (group / "memory.limit_in_bytes").write_text(str(memory), encoding="ascii")
        yield group
    finally:
        group.rmdir()


def bytes_of(name: str) -> int:
    """A number of /proc/self/io; that of children is added when they end."""
    lines = Path("/proc/self/io").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def stages(events: Path) -> dict[str, Any]:
    """Seconds and bytes of each stage that ran, from the JSON log."""
    found = [json.loads(line) for line in events.read_text(encoding="utf-8").splitlines()]
    return {
        event["stage"]: {"seconds": event["seconds"], "bytes": event["size_bytes"]}
        for event in found
        if "seconds" in event and "stage" in event
    }


def parity(folder: Path) -> list[dict[str, Any]]:
    """Every gate's report in a bundle, those that failed included: verdict, errors by layer, and what decides."""
    reports = []
    for path in sorted(folder.rglob("parity.json")):
        report = json.loads(path.read_text(encoding="utf-8"))
        by_name = {boundary["name"]: boundary["metrics"] for boundary in report["boundaries"]}
        reports.append(
            {
                "gate": report["gate"],
                "candidate": report["candidate"],
                "first_bad": report["first_bad"],
                "boundaries": {name: by_name[name] for name in _BOUNDARIES if name in by_name},
                "relative_error_by_layer": {
                    kind: [m["relative_error"] for name, m in by_name.items() if name.startswith(f"{kind}.")]
                    for kind in ("vision_block", "decoder_layer")
                },
            }
        )
    return reports


def measured(group: Path, name: str, arguments: Sequence[str]) -> dict[str, Any]:
    """Run the command within the group and say what it took."""
    program = Path(sys.executable).with_name("r1v-export")
    with tempfile.TemporaryDirectory() as scratch, Path(f"{name}.log").open("w", encoding="utf-8") as log:
        events = Path(scratch, "events")
        command: list[str | Path] = [program, *arguments, "-v", "--log-file", events, "--log-format", "json"]
        enter = f'echo $$ > {group}/cgroup.procs; exec "$@"'
        read, written, started = bytes_of("read_bytes"), bytes_of("write_bytes"), time.monotonic()
        with Watch(group) as watch:
            process = subprocess.run(["bash", "-c", enter, "bash", *command], stdout=log, stderr=log, check=False)
        seconds, used = time.monotonic() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
        bundle = Path(arguments[arguments.index("-o") + 1] if "-o" in arguments else arguments[1])
        return {
            "command": " ".join(("r1v-export", *arguments)),
            "commit": commit(),
            "exit": process.returncode,
            "seconds": round(seconds, 1),
            "cpu_seconds": round(used.ru_utime + used.ru_stime, 1),
            "load_average": {"mean": round(statistics.mean(watch.loads), 1), "most": max(watch.loads)},
            "anonymous_peak_gb": round(watch.anonymous / 1e9, 2),
            "resident_peak_gb": round(used.ru_maxrss * 1024 / 1e9, 2),
            "read_gb": round((bytes_of("read_bytes") - read) / 1e9, 2),
            "written_gb": round((bytes_of("write_bytes") - written) / 1e9, 2),
            "bundle_gb": round(sum(p.stat().st_size for p in bundle.rglob("*") if p.is_file()) / 1e9, 2),
            "free_disk_gb": round(shutil.disk_usage(".").free / 1e9, 1),
            "stages": stages(events),
            "parity": parity(bundle),
        }


@click.command()
@click.argument("name")
@click.option("--memory", default=6_000_000_000, help="Limit of the cgroup in bytes, pages of files included.")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def main(name: str, memory: int, arguments: tuple[str, ...]) -> None:
    """Run `r1v-export ARGUMENTS` and record what it took."""
    with cgroup(f"r1v-{name}", memory) as group:
        run = measured(group, name, arguments)
    try:
        results = newest_results(RESULTS)
    except IndexError:
        results = {"machine": machine(("r1v-export", "torch", "onnxruntime")), "runs": {}}
    results["runs"][name] = {**run, "limit_gb": memory / 1e9}
    click.echo(write_results(RESULTS, results))


if __name__ == "__main__":
    main()
