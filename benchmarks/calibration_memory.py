"""Peak memory of a calibration against the number of layers, at the 38B's true width.

Checkpoints with that many ViT blocks and decoder layers (InternViT-6B and Qwen2-32B width), calibrated on one small
image and quantized, each in a process of its own, all activations between blocks on disk. Tiles have 112 pixels: that
makes the run short and changes nothing about weights, statistics and quantization, which is what memory goes to. Needs
free disk of about 2 GB a layer.

    python benchmarks/calibration_memory.py [--layers 1 --layers 2 ...] [--recipe fp8] [--work FOLDER]
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import torch
from build_memory import peak_of
from measure import machine, write_results
from PIL import Image

from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.checkpoint.names import EMBED_TOKENS, LM_HEAD
from r1v_export.checkpoint.synth import synthesize
from r1v_export.checkpoint.tensor_file import read_header
from r1v_export.quantization.calibration.blockwise_runner import CalibrationOptions
from r1v_export.quantization.calibration.calibrate import calibrate
from r1v_export.quantization.calibration.dataset import prepare
from r1v_export.quantization.calibration.raw_examples import RawExample
from r1v_export.quantization.recipe import load

TILE = 112


def measure(layers: int, recipe: str, work: Path) -> dict[str, Any]:
    """Make one checkpoint, calibrate it in a process, and take that process's peak resident set."""
    checkpoint, out = work / f"checkpoint-{layers}", work / f"calibration-{layers}"
    for folder in (checkpoint, out):
        shutil.rmtree(folder, ignore_errors=True)
    make_checkpoint(checkpoint, layers)
    try:
        started = time.monotonic()
        arguments = ["--calibrate", str(checkpoint), "--work", str(out), "--recipe", recipe]
        peak_bytes = peak_of([sys.executable, __file__, *arguments])
        seconds = time.monotonic() - started
    finally:
        for folder in (checkpoint, out):
            shutil.rmtree(folder, ignore_errors=True)
    result = {"layers": layers, "peak_rss_gb": round(peak_bytes / 1e9, 2), "seconds": round(seconds, 1)}
    print(f"  {result}", file=sys.stderr, flush=True)
    return result


def make_checkpoint(
    folder: Path, layers: int, vision_layers: int | None = None, overrides: Mapping[str, object] | None = None
) -> None:
    """Blocks of one repeated piece of noise, which is written faster than noise throughout is made; embeddings and head
    are holes of the true size."""
    synthesize(
        folder,
        preset="r1v3-38b",
        vision_layers=vision_layers or layers,
        language_layers=layers,
        overrides={"force_image_size": TILE, "vision_config.image_size": TILE, **(overrides or {})},
        weights="empty",
        shards=1,
    )
    noise = torch.randn(8 << 20, generator=torch.Generator().manual_seed(0)).mul_(0.02).bfloat16()
    piece = noise.view(torch.uint8).numpy().data
    (path,) = folder.glob("*.safetensors")
    with path.open("r+b") as file:
        for stored in read_header(path).values():
            if stored.name in (EMBED_TOKENS, LM_HEAD):
                continue
            file.seek(stored.offset)
            for start in range(0, stored.nbytes, len(piece)):
                file.write(piece[: stored.nbytes - start])


def calibrate_one(folder: Path, recipe: str, out: Path) -> None:
    """What is measured."""
    checkpoint = Checkpoint.open(folder)
    example = RawExample(
        "noise", (lambda: Image.effect_noise((TILE, TILE), 64).convert("RGB"),), "What is this?", answer="Noise."
    )
    calibrate(
        checkpoint, load(recipe), prepare([example], checkpoint), out, CalibrationOptions(activation_memory_bytes=0)
    )


@click.command(help=__doc__)
@click.option("--layers", multiple=True, type=click.IntRange(1), default=(1, 2, 4), show_default=True)
@click.option("--recipe", default="fp8", show_default=True)
@click.option("--work", type=click.Path(path_type=Path), default=Path("/tmp/r1v-calibration-memory"), show_default=True)
@click.option("--calibrate", "folder", type=click.Path(path_type=Path), hidden=True)
def main(layers: tuple[int, ...], recipe: str, work: Path, folder: Path | None) -> None:
    if folder is not None:
        calibrate_one(folder, recipe, work)
        return
    conditions = machine(("torch",))
    results = [measure(count, recipe, work) for count in sorted(layers)]
    print(write_results(f"calibration-memory-{recipe}", {"machine": conditions, "recipe": recipe, "results": results}))


if __name__ == "__main__":
    main()
