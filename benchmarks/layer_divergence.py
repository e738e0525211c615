"""Whether a decoder layer computes what the fake-quantized model does, or only nearly the same: by layer, on one input.

Where inputs are rounded to 8 bits, a value next to a boundary falls on either side of it by the order of a sum, so that
engine and reference drift apart, layer by layer, although both are right. Here each decoder layer of a bundle's engine
gets the reference's own input, 48 positions of random numbers, and is compared with the reference, for each position;
next to it, the reference is compared with itself, its input moved by one unit in the last place.

    PYTHONPATH=. python benchmarks/layer_divergence.py BUNDLE --model CHECKPOINT [--layers 4]
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click
import numpy as np
import torch
from measure import RESULTS, machine, write_results

from r1v_export.bundle import ENGINES
from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.cpus import thread_count
from r1v_export.pipeline.calibration import open_artifact
from r1v_export.pipeline.parity_gate import reference_blocks
from r1v_export.targets.interface import OpensBlocks
from r1v_export.targets.registry import get_target

if TYPE_CHECKING:
    from r1v_export.contract import OpenCache

POSITIONS = 48
SCALE = 0.02
"""Of the random numbers: about that of embeddings."""


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def computed(layer: OpenCache, hidden_1SE: np.ndarray) -> np.ndarray:
    return layer(POSITIONS)(hidden_1SE, 0)


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path, exists=True))
@click.option("--model", required=True, help="The checkpoint that the bundle was built from.")
@click.option("--target", default="onnxruntime", show_default=True)
@click.option("--layers", default=4, show_default=True)
@click.option("--results", type=click.Path(path_type=Path), default=RESULTS, show_default=True)
def main(bundle: Path, model: str, target: str, layers: int, results: Path) -> None:
    torch.set_num_threads(thread_count().count)
    checkpoint, opener = Checkpoint.open(model), get_target(target)
    assert isinstance(opener, OpensBlocks), f"{target} has no streamed gate"
    reference = reference_blocks(checkpoint, open_artifact(bundle, checkpoint))
    engine = opener.open_blocks(bundle / ENGINES / target, checkpoint.spec, "cpu")
    numbers = np.random.default_rng(0).standard_normal((1, POSITIONS, checkpoint.spec.sizes.hidden))
    start = (SCALE * numbers).astype(np.float32)
    of_reference, of_engine, of_moved = start, start, np.nextafter(start, np.float32(np.inf))
    rows = []
    for index in range(layers):
        layer = reference.decoder_layer(index)
        own, moved = computed(layer, of_reference), computed(layer, of_moved)
        moved_here = computed(layer, np.nextafter(of_reference, np.float32(np.inf)))
        layer = engine.decoder_layer(index)
        same_input, walked = computed(layer, of_reference), computed(layer, of_engine)
        of_positions = [relative(*pair) for pair in zip(same_input[0], own[0], strict=True)]
        row = {
            "engine, the reference's input": {
                "all": relative(same_input, own),
                "median": float(np.median(of_positions)),
            },
            "reference, its input moved": relative(moved_here, own),
            "engine, from the first layer on": relative(walked, own),
            "reference, moved before the first layer": relative(moved, own),
        }
        rows.append(row)
        click.echo(f"layer {index}: {row}")
        of_reference, of_engine, of_moved = own, walked, moved
    report = {"machine": machine(("onnxruntime", "torch")), "bundle": str(bundle), "target": target, "layers": rows}
    click.echo(write_results("layer-divergence", report, results))


if __name__ == "__main__":
    main()
