"""Builds that are killed, run out of disk, are terminated or meet another one, at the 38B's true width.

A sparse checkpoint with few ViT blocks and decoder layers (InternViT-6B and Qwen2-32B width) is built undisturbed; then
again and again with something in its way, resumed until it is done, and compared file by file, by SHA-256:

* kill -9 once the process has written a random number of bytes, and a random moment after that;
* another file takes the disk but for a few megabytes while the build writes; it ends with an error of ours, the file
  goes, the build goes on;
* SIGTERM, and a second build in the same folder meanwhile.

Reported is also how much was written twice. Needs root, for a file system of its own in a file, and about
6 GB of disk. Times mean something on an idle machine only.

    python benchmarks/lost.py [--kills 20] [--full-disks 10] [--recipe int4-rtn --recipe fp8-tensor]
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
from measure import machine, write_results

import r1v_export.pipeline.build
import r1v_export.targets.hf_unified.target  # noqa: F401
from r1v_export.checkpoint.synth import synthesize
from r1v_export.cli.main import run as run_command
from r1v_export.manifest import MANIFEST, hash_file

MB = 1_000_000
_POLL_S = 0.005


@dataclass
class Attempt:
    """One run of the command."""

    exit_code: int
    written_bytes: int
    wall_s: float
    output: str


@dataclass
class Case:
    """One way of building: a recipe and its undisturbed result."""

    recipe: str
    config: Path
    out: Path
    hashes: dict[str, str] = field(default_factory=dict)
    undisturbed: Attempt | None = None


class Run:
    """A build in a process of its own: a fork of this one, which has imported what takes long and started no thread."""

    def __init__(self, case: Case, log: str = "log") -> None:
        command = ["build", "--config", str(case.config), "-o", str(case.out)]
        self.log = case.out.with_name(log)
        self._started = time.monotonic()
        self.pid = os.fork()
        if not self.pid:
            output = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(output, 1)
            os.dup2(output, 2)
            os._exit(run_command(command))
        self._written = 0

    def running(self) -> bool:
        """Whether it has not ended; notes what it has written."""
        try:
            counters = Path(f"/proc/{self.pid}/io").read_text().splitlines()
            # Of a process that has ended and waits to be waited for, nothing is said any more, or 0.
            self._written = max(
                self._written, int(next(line for line in counters if line.startswith("wchar")).split()[1])
            )
        except (OSError, StopIteration):
            pass
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None

    @property
    def written_bytes(self) -> int:
        return self._written

    def wait_for(self, written_bytes: int) -> bool:
        """Wait until so much is written; False if it ends before."""
        while self.running():
            if self._written >= written_bytes:
                return True
            time.sleep(_POLL_S)
        return False

    def end(self) -> Attempt:
        """Wait for its end."""
        while self.running():
            time.sleep(_POLL_S)
        _, status = os.waitpid(self.pid, 0)
        wall_s = time.monotonic() - self._started
        return Attempt(os.waitstatus_to_exitcode(status), self._written, wall_s, self.log.read_text())


def hashes_of(bundle: Path) -> dict[str, str]:
    """SHA-256 of every file, by path; what is left of an unfinished build included."""
    return {str(path.relative_to(bundle)): hash_file(path).sha256 for path in bundle.rglob("*") if path.is_file()}


def require(condition: bool, what: str, attempt: Attempt | None = None) -> None:
    if not condition:
        raise click.ClickException(f"{what}\n{attempt.output if attempt else ''}")


def say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


def measure_undisturbed(case: Case) -> None:
    """Build once, and once more on what is done."""
    case.undisturbed = Run(case).end()
    require(case.undisturbed.exit_code == 0, "the undisturbed build failed", case.undisturbed)
    case.hashes = hashes_of(case.out)
    again = Run(case).end()
    require(again.exit_code == 0 and "up to date" in again.output, "a finished build is not done", again)
    shutil.rmtree(case.out)


def finish(case: Case, attempts: list[Attempt]) -> None:
    """Require a finished build to be the undisturbed one, and remove it."""
    require(attempts[-1].exit_code == 0, "a resumed build failed", attempts[-1])
    found = hashes_of(case.out)
    differing = sorted(path for path in found.keys() | case.hashes.keys() if found.get(path) != case.hashes.get(path))
    require(not differing, f"files differ: {', '.join(differing)}")
    shutil.rmtree(case.out)


def repeated(case: Case, attempts: list[Attempt]) -> dict[str, Any]:
    """What a build wrote that was disturbed, over what one writes that was not, by disturbance."""
    assert case.undisturbed is not None
    times = len(attempts) - 1
    again_bytes = sum(attempt.written_bytes for attempt in attempts) - case.undisturbed.written_bytes
    return {
        "disturbances": times,
        "written_mb_before_each": [round(attempt.written_bytes / MB) for attempt in attempts[:-1]],
        "repeated_mb_each": round(again_bytes / MB / times, 1),
    }


def kill(case: Case, count: int, chance: random.Random) -> list[dict[str, Any]]:
    """Kill builds `count` times in all, each build several times."""
    assert case.undisturbed is not None
    builds, left = [], count
    while left:
        attempts: list[Attempt] = []
        while True:
            run = Run(case)
            if left and run.wait_for(chance.randrange(case.undisturbed.written_bytes // 2)):
                time.sleep(chance.uniform(0, 1))
                if run.running():
                    os.kill(run.pid, signal.SIGKILL)
            attempts.append(run.end())
            if attempts[-1].exit_code != -signal.SIGKILL:
                break
            left -= 1
            say(f"{case.recipe}: killed after {attempts[-1].written_bytes // MB} MB and {attempts[-1].wall_s:.1f} s")
            require(not (case.out / MANIFEST).exists(), "a killed build looks finished")
        finish(case, attempts)
        if len(attempts) > 1:
            builds.append(repeated(case, attempts))
            say(f"{case.recipe}: {count - left} of {count} killed; {builds[-1]}")
    return builds


def fill(case: Case, count: int, chance: random.Random) -> list[dict[str, Any]]:
    """Fill the disk `count` times in all while builds write."""
    assert case.undisturbed is not None
    ballast, builds, left = case.out.with_name("ballast"), [], count
    while left:
        attempts: list[Attempt] = []
        while True:
            run = Run(case)
            filled = left > 0 and run.wait_for(chance.randrange(case.undisturbed.written_bytes // 2))
            if filled:
                room = shutil.disk_usage(case.out.parent).free - chance.randrange(64 * MB)
                subprocess.run(["fallocate", "-l", str(max(room, 1)), str(ballast)], check=False, capture_output=True)
            attempts.append(run.end())
            ballast.unlink(missing_ok=True)
            if attempts[-1].exit_code == 0:
                break
            left -= 1
            say(f"{case.recipe}: disk full after {attempts[-1].written_bytes // MB} MB and {attempts[-1].wall_s:.1f} s")
            message = "a full disk is not an error of ours"
            require(attempts[-1].exit_code == 4 and "The disk is full" in attempts[-1].output, message, attempts[-1])
        finish(case, attempts)
        if len(attempts) > 1:
            builds.append(repeated(case, attempts))
            say(f"{case.recipe}: {count - left} of {count} full; {builds[-1]}")
    return builds


def terminate(case: Case) -> dict[str, Any]:
    """Refuse a second build in the folder of one that runs, then end that with SIGTERM and resume."""
    assert case.undisturbed is not None
    run = Run(case)
    require(run.wait_for(case.undisturbed.written_bytes // 3), "the build ended too early")
    os.kill(run.pid, signal.SIGSTOP)
    second = Run(case, "log-of-second").end()
    require(second.exit_code == 2 and "Another build is running" in second.output, "a second build runs", second)
    os.kill(run.pid, signal.SIGTERM)
    os.kill(run.pid, signal.SIGCONT)
    first = run.end()
    require(first.exit_code == 143, "SIGTERM is not an error of ours", first)
    attempts = [first, Run(case).end()]
    finish(case, attempts)
    return repeated(case, attempts)


@contextmanager
def own_disk(folder: Path, size_bytes: int) -> Iterator[Path]:
    """A file system in a sparse file, so that nobody else's disk is filled."""
    image, mounted = folder / "disk.img", folder / "disk"
    mounted.mkdir()
    with image.open("wb") as file:
        file.truncate(size_bytes)
    subprocess.run(["mkfs.ext4", "-q", "-m", "0", "-E", "lazy_itable_init=1", str(image)], check=True)
    subprocess.run(["mount", "-o", "loop,discard", str(image), str(mounted)], check=True)
    try:
        yield mounted
    finally:
        subprocess.run(["umount", "--lazy", str(mounted)], check=True)
        image.unlink()


def measure(
    recipe: str, precision: str, model: Path, disk: Path, kills: int, full_disks: int, seed: int
) -> dict[str, Any]:
    """Every disturbance of one recipe's builds."""
    config = disk.parent / f"{recipe}.json"
    fields = {
        "model": str(model),
        "precision": precision,
        "recipe": recipe,
        "calibration": {"samples": 2},
        "targets": ["hf-unified"],
        "parity": {"enabled": False},
    }
    config.write_text(json.dumps(fields))  # which is YAML
    case, chance = Case(recipe, config, disk / "out"), random.Random(seed)
    measure_undisturbed(case)
    assert case.undisturbed is not None
    gigabytes = case.undisturbed.written_bytes / 1e9
    say(f"{recipe}: {len(case.hashes)} files, {gigabytes:.2f} GB in {case.undisturbed.wall_s:.0f} s")
    results = {
        "files": len(case.hashes),
        "undisturbed_written_mb": round(case.undisturbed.written_bytes / MB),
        "sigterm_and_second_build": terminate(case),
    }
    say(f"{recipe}: terminated; {results['sigterm_and_second_build']}")
    return {**results, "killed": kill(case, kills, chance), "full_disk": fill(case, full_disks, chance)}


@click.command()
@click.option("--recipe", "recipes", multiple=True, default=("int4-rtn", "fp8-tensor"), show_default=True)
@click.option("--preset", default="r1v3-38b", show_default=True, help="Of synth.")
@click.option("--layers", default=4, show_default=True, help="ViT blocks, and decoder layers.")
@click.option("--kills", default=20, show_default=True, help="Over all recipes.")
@click.option("--full-disks", default=10, show_default=True, help="Over all recipes.")
@click.option("--seed", default=0, show_default=True)
@click.option("--disk-gb", default=9.0, show_default=True, help="Of the file system; it takes what is written only.")
@click.option("--work", type=click.Path(path_type=Path), default=Path("/tmp/r1v-lost"), show_default=True)
def main(
    recipes: tuple[str, ...],
    preset: str,
    layers: int,
    kills: int,
    full_disks: int,
    seed: int,
    disk_gb: float,
    work: Path,
) -> None:
    from r1v_export.quantization.recipe import load

    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    conditions, results = machine(("torch", "onnx", "onnx-ir")), {}
    # In a process of its own: torch's threads would be missing in what is forked afterwards, which would wait for them.
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as apart:
        shape: dict[str, Any] = {
            "preset": preset,
            "vision_layers": layers,
            "language_layers": layers,
            "weights": "sparse",
        }
        model = apart.submit(synthesize, work / "model", **shape).result()
    with own_disk(work, int(disk_gb * 1e9)) as disk:
        for number, recipe in enumerate(recipes):
            share = [count // len(recipes) + (number < count % len(recipes)) for count in (kills, full_disks)]
            results[recipe] = measure(recipe, load(recipe).precision, model, disk, *share, seed + number)
    shutil.rmtree(work)
    print(
        write_results(
            "lost", {"machine": conditions, "preset": preset, "layers": layers, "seed": seed, "results": results}
        )
    )


if __name__ == "__main__":
    main()
