"""Speed of the vision tower in our ONNX Runtime engine against PyTorch, eager and compiled, on the same weights.

A random InternViT-300M-wide tower (hidden 1024, 16 heads, MLP 4096, 448 px) in float32; 6 of its 24 equal blocks by
default, which leaves the ratios as they are.

    python benchmarks/vision_onnxruntime.py [--layers 6] [--tiles 1 --tiles 4] [--no-compile]
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
import torch
from measure import RESULTS, interleaved, machine, ratio, write_results

from r1v_export import contract
from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.checkpoint.presets import INTERNVIT_300M
from r1v_export.checkpoint.synth import synthesize
from r1v_export.config import BuildConfig
from r1v_export.cpus import thread_count
from r1v_export.exporters.export import export_graph
from r1v_export.reference.model import load
from r1v_export.targets.interface import BuildInputs
from r1v_export.targets.onnxruntime.runtime.engine import OnnxRuntimeEngine
from r1v_export.targets.onnxruntime.target import OnnxRuntimeTarget

OURS, EAGER, COMPILED, STANDARD = "r1v-export", "torch eager", "torch.compile", "standard graph"
QUANTITY = "tiles_per_s"


def prepare(work: Path, layers: int) -> Checkpoint:
    """A checkpoint with this tower and nano's small language model, its graphs, made once, and its engine."""
    if not (work / "checkpoint").exists():
        fields = INTERNVIT_300M | {"num_hidden_layers": layers}
        tower = {f"vision_config.{field}": value for field, value in fields.items()}
        size = {"force_image_size": INTERNVIT_300M["image_size"]}
        synthesize(work / "checkpoint", preset="nano", overrides=tower | size, dtype="float32")
    checkpoint = Checkpoint.open(work / "checkpoint")
    engine = work / "engines" / "onnxruntime"
    shutil.rmtree(engine, ignore_errors=True)
    engine.mkdir(parents=True)
    (work / "graphs").mkdir(exist_ok=True)
    for name in contract.GRAPHS:
        if not (work / "graphs" / f"{name}.onnx").exists():
            export_graph(name, checkpoint, work / "graphs", torch.float32)
    OnnxRuntimeTarget().build(BuildInputs(work / "graphs", checkpoint, None, BuildConfig()), engine, lambda _: None)
    return checkpoint


def contenders(work: Path, checkpoint: Checkpoint, threads: int, compile_: bool) -> dict[str, Callable]:
    """Name -> pixel_values -> vision_features, all on numpy arrays."""
    torch.set_num_threads(threads)
    sizes = checkpoint.spec.sizes
    model = load(checkpoint).vision_model

    def by_torch(run: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[np.ndarray], np.ndarray]:
        def vision(pixels: np.ndarray) -> np.ndarray:
            with torch.inference_mode():
                return run(torch.from_numpy(pixels)).numpy()

        return vision

    runs = {
        OURS: OnnxRuntimeEngine(work / "engines" / "onnxruntime", work, sizes, "cpu", threads).vision,
        STANDARD: OnnxRuntimeEngine(work / "graphs", work / "graphs", sizes, "cpu", threads).vision,
        EAGER: by_torch(model),
    }
    return runs | ({COMPILED: by_torch(torch.compile(model))} if compile_ else {})


@click.command()
@click.option("--layers", default=6, show_default=True)
@click.option("--tiles", "tile_counts", multiple=True, type=int, default=(1, 4), show_default=True)
@click.option("--repeats", default=5, show_default=True)
@click.option("--threads", default=thread_count().count, show_default=True)
@click.option("--compile/--no-compile", "compile_", default=True, help="Compare with torch.compile too.")
@click.option("--work", type=click.Path(path_type=Path), default=Path("/tmp/r1v-benchmark-vision"), show_default=True)
@click.option("--results", type=click.Path(path_type=Path), default=RESULTS, show_default=True)
def main(
    layers: int,
    tile_counts: tuple[int, ...],
    repeats: int,
    threads: int,
    compile_: bool,
    work: Path,
    results: Path,
) -> None:
    work /= f"{layers}-layers"
    checkpoint = prepare(work, layers)
    report = {"machine": machine(("onnxruntime", "torch")), "threads": threads, "layers": layers, "tiles": {}}
    runs = contenders(work, checkpoint, threads, compile_)
    for tiles in tile_counts:
        size = checkpoint.spec.tiling.tile_size
        pixels = np.random.default_rng(0).standard_normal((tiles, 3, size, size)).astype(np.float32)
        features: dict[str, np.ndarray] = {}

        def measure(name: str, pixels: np.ndarray = pixels, features: dict = features) -> dict[str, float]:
            started = time.perf_counter()
            features[name] = runs[name](pixels)
            return {QUANTITY: len(pixels) / (time.perf_counter() - started)}

        measured = interleaved({name: lambda n=name, m=measure: m(n) for name in runs}, repeats)
        error = max(float(np.abs(each - features[EAGER]).max()) for each in features.values())
        ratios = {f"{OURS} / {peer}": ratio(measured, OURS, peer, QUANTITY) for peer in runs if peer != OURS}
        report["tiles"][tiles] = {"ratios": ratios, "max_abs_difference": error, **measured}
        click.echo(f"{tiles} tiles: {ratios}, largest difference {error:.1e}")
    click.echo(write_results("vision-onnxruntime", report | {"repeats": repeats}, results))


if __name__ == "__main__":
    main()
