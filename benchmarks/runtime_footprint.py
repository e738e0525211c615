"""What answering costs before the first token, with the compiler and without: size of the packages, and time to start.

Two environments are installed with pip, in the versions of the lock: `r1v-export[onnxruntime]`, and
`r1v-export[onnxruntime,build]`, which is what every installation was before the compiler was an extra. An earlier
commit runs in the latter, from a copy of its sources. All answer the same question with the same model (each commit's
bundle is its own), in processes of their own, by turns.

    python benchmarks/runtime_footprint.py [--before COMMIT] [--repeats 7]
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
from measure import interleaved, machine, ratio, write_results

PROJECT = Path(__file__).parents[1]
IMAGE, QUESTION = PROJECT / "examples/images/06-count.png", "How many objects do you see?"
EXTRAS = {"runtime": "onnxruntime", "full": "onnxruntime,build"}
MAIN = ("-m", "r1v_export.cli.main")

_ANSWER = """
import resource, subprocess, sys, time
started = time.perf_counter()
process = subprocess.Popen(sys.argv[1:], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
process.stdout.read(len("<think>") + 2)
first_token_s = time.perf_counter() - started
process.stdout.read()
assert process.wait() == 0
print(first_token_s, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""
"""Seconds until the first character of the reasoning, and the peak resident set in KiB."""


def install(folder: Path, extras: str) -> Path:
    """An environment with the package; its interpreter."""
    python = folder / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "-c", "requirements.lock", f".[{extras}]"], cwd=PROJECT, check=True)
    return python


def sources_of(commit: str, folder: Path) -> Path:
    """The files of a commit."""
    folder.mkdir(parents=True, exist_ok=True)
    archive = subprocess.run(["git", "-C", PROJECT, "archive", commit], stdout=subprocess.PIPE, check=True).stdout
    subprocess.run(["tar", "-x", "-C", folder], input=archive, check=True)
    return folder


def size_mb(python: Path) -> dict[str, float]:
    """What is installed, by its first folder; the largest ten, and all."""
    (site,) = python.parents[1].glob("lib/python3*/site-packages")
    sizes: dict[str, float] = {}
    for file in site.rglob("*"):
        if file.is_file() and not file.is_symlink():
            part = file.relative_to(site).parts[0]
            sizes[part] = sizes.get(part, 0.0) + file.stat().st_size / 1e6
    largest = sorted(sizes, key=lambda name: -sizes[name])[:10]
    return {"all": round(sum(sizes.values()), 1)} | {name: round(sizes[name], 1) for name in largest}


def environment(sources: Path | None) -> dict[str, str]:
    """The variables with which the package is imported from some sources; from what is installed if None."""
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return variables | ({"PYTHONPATH": str(sources)} if sources else {})


def build(python: Path, sources: Path | None, bundle: Path) -> Path:
    """The shipped model in float32."""
    command = [python, *MAIN, "build", "-o", bundle, "--no-parity"]
    subprocess.run(command, check=True, stdout=sys.stderr, env=environment(sources), cwd="/")
    return bundle


def measure(python: Path, sources: Path | None, bundle: Path) -> dict[str, float]:
    """Milliseconds of an import, of the help and until the first token; MB of the process that answers."""
    variables = environment(sources)

    def run(*arguments: str | Path) -> str:
        return subprocess.run(
            [python, *arguments], env=variables, cwd="/", check=True, capture_output=True, text=True
        ).stdout

    def milliseconds(*arguments: str | Path) -> float:
        started = time.perf_counter()
        run(*arguments)
        return 1000 * (time.perf_counter() - started)

    answer = (*MAIN, "run", bundle, "--image", IMAGE, QUESTION)
    first_token_s, peak_kib = run("-c", _ANSWER, python, *answer).split()
    return {
        "interpreter_ms": milliseconds("-c", "pass"),
        "import_ms": milliseconds("-c", "import r1v_export"),
        "import_open_runner_ms": milliseconds("-c", "from r1v_export import open_runner"),
        "help_ms": milliseconds(*MAIN, "--help"),
        "first_token_ms": 1000 * float(first_token_s),
        "peak_rss_mb": int(peak_kib) * 1024 / 1e6,
    }


@click.command()
@click.option("--before", default="ce7648e", show_default=True, help="The commit to compare with.")
@click.option("--repeats", default=7, show_default=True)
def main(before: str, repeats: int) -> None:
    with TemporaryDirectory() as folder:
        compare(before, repeats, Path(folder))


def compare(before: str, repeats: int, work: Path) -> None:
    """Install, build and measure below `work`, and write the results."""
    conditions = machine(("onnxruntime", "torch", "onnx"))
    pythons = {name: install(work / name, extras) for name, extras in EXTRAS.items()}
    old = sources_of(before, work / "before")
    bundle, old_bundle = build(pythons["full"], None, work / "bundle"), build(pythons["full"], old, work / "old-bundle")
    contenders: Mapping[str, Callable[[], dict[str, float]]] = {
        "before": partial(measure, pythons["full"], old, old_bundle),
        "full": partial(measure, pythons["full"], None, bundle),
        "runtime": partial(measure, pythons["runtime"], None, bundle),
    }
    results: dict[str, Any] = interleaved(contenders, repeats)
    sizes = {name: size_mb(python) for name, python in pythons.items()}
    ratios = {
        f"before / {ours}, {quantity}": ratio(results, "before", ours, quantity)
        for ours in ("full", "runtime")
        for quantity in results["before"]
    }
    ratios["full / runtime, site-packages"] = round(sizes["full"]["all"] / sizes["runtime"]["all"], 2)
    content = {"machine": conditions, "before": before, "site_packages_mb": sizes, "ratios": ratios, "results": results}
    print(write_results("runtime-footprint", content))


if __name__ == "__main__":
    main()
