"""Peak memory of `r1v-export build` against the number of layers, at the 38B's true width.

Checkpoints in the official layout with 2, 4, 8 and 16 ViT blocks and decoder layers (InternViT-6B and Qwen2-32B width,
sparse files: true sizes, weights zero), built to fp16 graphs and ONNX Runtime engines without the parity gate, each in
a process of its own. Needs free disk of about twice the largest bundle (40 GB for 16 layers).

    python benchmarks/build_memory.py [--layers 2 --layers 4 ...] [--work FOLDER]
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click
from measure import machine, write_results

from r1v_export.checkpoint.synth import synthesize

PACKAGES = ("torch", "onnx", "onnx-ir", "onnxruntime")


_RUN_AND_MEASURE = """
import resource, subprocess, sys
code = subprocess.run(sys.argv[1:], stdout=sys.stderr).returncode
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(code)
"""


def measure(layers: int, work: Path) -> dict[str, Any]:
    """Build one checkpoint and take the process's peak resident set, mapped files included."""
    checkpoint, bundle = work / f"checkpoint-{layers}", work / f"bundle-{layers}"
    for folder in (checkpoint, bundle):
        shutil.rmtree(folder, ignore_errors=True)
    synthesize(checkpoint, preset="r1v3-38b", vision_layers=layers, language_layers=layers, weights="empty")
    try:
        started = time.monotonic()
        arguments = ["build", str(checkpoint), "-o", str(bundle), "--precision", "fp16", "--no-parity"]
        peak_bytes = peak_of([sys.executable, "-m", "r1v_export.cli.main", *arguments])
        seconds = time.monotonic() - started
        written_bytes = sum(path.stat().st_size for path in bundle.rglob("*") if path.is_file())
    finally:
        for folder in (checkpoint, bundle):
            shutil.rmtree(folder, ignore_errors=True)
    result = {"layers": layers, "peak_rss_gb": round(peak_bytes / 1e9, 2), "bundle_gb": round(written_bytes / 1e9, 2)}
    print(f"  {result}", file=sys.stderr, flush=True)
    return result | {"gb_per_s": round(written_bytes / 1e9 / seconds, 3)}


def peak_of(command: list[str]) -> int:
    """Run a command; its own peak resident set in bytes.

    A small process stands between: a child starts with the peak of the process that started it, so one that has held
    large tensors would be what is measured.
    """
    run = subprocess.run([sys.executable, "-c", _RUN_AND_MEASURE, *command], stdout=subprocess.PIPE, text=True)
    if run.returncode:
        raise SystemExit(f"{' '.join(command)} failed: {run.returncode}")
    return int(run.stdout) * (1 if sys.platform == "darwin" else 1024)


@click.command()
@click.option("--layers", "all_layers", multiple=True, type=int, default=(2, 4, 8, 16), show_default=True)
@click.option("--work", type=click.Path(path_type=Path), default=Path("/tmp/r1v-build-memory"), show_default=True)
def main(all_layers: tuple[int, ...], work: Path) -> None:
    conditions = machine(PACKAGES)
    work.mkdir(parents=True, exist_ok=True)
    results = [measure(layers, work) for layers in all_layers]
    print(write_results("build-memory", {"machine": conditions, "results": results}))


if __name__ == "__main__":
    main()
