"""Peak memory of a calibration against the number of layers, at the 38B's true width.

Random checkpoints with that many ViT blocks and decoder layers (InternViT-6B and Qwen2-32B width), calibrated on the
built-in pictures and quantised, each in a process of its own, all activations between blocks on disk. Needs free disk
of about 2 GB a layer and 4 GB on top.

    python benchmarks/calibration_memory.py [--layers 1 --layers 2 ...] [--recipe fp8] [--samples 1] [--work FOLDER]
"""

from __future__ import annotations

import shutil
import sys
import time
from pathlib import Path
from typing import Any

import click
from build_memory import peak_of
from measure import machine, write_results

from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.checkpoint.synth import synthesize
from r1v_export.quantization.calibrate import calibrate
from r1v_export.quantization.dataset import prepare
from r1v_export.quantization.recipe import load
from r1v_export.quantization.records import read_records


def measure(layers: int, recipe: str, samples: int, work: Path) -> dict[str, Any]:
    """Make one checkpoint, calibrate it in a process, and take that process's peak resident set."""
    checkpoint, out = work / f"checkpoint-{layers}", work / f"calibration-{layers}"
    for folder in (checkpoint, out):
        shutil.rmtree(folder, ignore_errors=True)
    synthesize(checkpoint, preset="r1v3-38b", vision_layers=layers, language_layers=layers)
    try:
        started = time.monotonic()
        arguments = ["--calibrate", str(checkpoint), "--work", str(out), "--recipe", recipe, "--samples", str(samples)]
        peak_bytes = peak_of([sys.executable, __file__, *arguments])
        seconds = time.monotonic() - started
    finally:
        for folder in (checkpoint, out):
            shutil.rmtree(folder, ignore_errors=True)
    result = {"layers": layers, "peak_rss_gb": round(peak_bytes / 1e9, 2), "seconds": round(seconds, 1)}
    print(f"  {result}", file=sys.stderr, flush=True)
    return result


def calibrate_one(folder: Path, recipe: str, samples: int, out: Path) -> None:
    """What is measured."""
    checkpoint = Checkpoint.open(folder)
    calibration = prepare(read_records(None, samples), checkpoint)
    calibrate(checkpoint, load(recipe), calibration, out, activation_memory_bytes=0)


@click.command(help=__doc__)
@click.option("--layers", multiple=True, type=click.IntRange(1), default=(1, 2, 4), show_default=True)
@click.option("--recipe", default="fp8", show_default=True)
@click.option("--samples", type=click.IntRange(1), default=1, show_default=True)
@click.option("--work", type=click.Path(path_type=Path), default=Path("calibration-memory"), show_default=True)
@click.option("--calibrate", "folder", type=click.Path(path_type=Path), hidden=True)
def main(layers: tuple[int, ...], recipe: str, samples: int, work: Path, folder: Path | None) -> None:
    if folder is not None:
        calibrate_one(folder, recipe, samples, work)
        return
    results = [measure(count, recipe, samples, work) for count in sorted(layers)]
    growth_gb = results[-1]["peak_rss_gb"] - results[0]["peak_rss_gb"]
    content = {
        "machine": machine(("torch",)),
        "recipe": recipe,
        "samples": samples,
        "results": results,
        "growth_gb_per_layer": round(growth_gb / max(results[-1]["layers"] - results[0]["layers"], 1), 3),
    }
    print(write_results(f"calibration-memory-{recipe}", content))


if __name__ == "__main__":
    main()
