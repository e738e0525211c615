"""Images in 8 bits by ONNX Runtime against float32: opening the tower, encoding a tile, and memory.

An INT4 bundle's two forms of the vision graph, each in a process of its own that opens it and encodes one tile of
random pixels twice, by turns. The first tile is on top of opening, the second is what `serve` takes. Memory is the
process's at its peak, Python and its libraries included.

    r1v-export build CHECKPOINT --precision int4 --no-parity -o BUNDLE
    python benchmarks/int8_images.py BUNDLE

Results: benchmarks/results/<date>-int8-images.json.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import click
import numpy as np
from measure import RESULTS, interleaved, machine, write_results

from r1v_export.bundle import Bundle
from r1v_export.cpus import thread_count, use_threads
from r1v_export.targets.images import ImageEncoder, parts_of
from r1v_export.targets.onnxruntime.target import OnnxRuntimeTarget

TARGET = OnnxRuntimeTarget.name


def encode(bundle: Bundle, part: ImageEncoder | None, threads: int) -> dict[str, float]:
    """Open the engine, or a part of it, in this process, and encode a tile twice."""
    use_threads(threads)
    side = bundle.spec.sizes.tile_size
    pixels = np.random.default_rng(0).standard_normal((1, 3, side, side)).astype(np.float32)
    start = time.perf_counter()
    engine = part or ImageEncoder(TARGET)
    encoder = engine.open(bundle.folder, bundle.spec, "cpu")
    encoder.vision(pixels)  # what opens the graph
    first_s = time.perf_counter() - start
    start = time.perf_counter()
    encoder.vision(pixels)
    tile_s = time.perf_counter() - start
    peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"open_s": first_s - tile_s, "tile_s": tile_s, "peak_bytes": peak_bytes}


def in_a_process(bundle: Path, title: str, threads: int) -> dict[str, float]:
    command = [sys.executable, __file__, str(bundle), "--worker", title, "--threads", str(threads)]
    found: dict[str, float] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    return found


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path, exists=True))
@click.option("--turns", default=5, show_default=True)
@click.option("--threads", default=thread_count().count, show_default=True)
@click.option("--worker", hidden=True)
@click.option("--results", type=click.Path(path_type=Path), default=RESULTS, show_default=True)
def main(bundle: Path, turns: int, threads: int, worker: str | None, results: Path) -> None:
    own = {part.title: part for part in parts_of(bundle, TARGET) if part.name == TARGET}
    if worker is not None:
        click.echo(json.dumps(encode(Bundle.open(bundle), own.get(worker), threads)))
        return
    contenders: dict[str, Callable[[], dict[str, float]]] = {
        title: partial(in_a_process, bundle, title, threads) for title in (TARGET, *own)
    }
    report = {"machine": machine(("onnxruntime", "numpy")), "threads": threads, "turns": turns}
    report["encoders"] = interleaved(contenders, turns)
    click.echo(write_results("int8-images", report, results))


if __name__ == "__main__":
    main()
