"""Calibration at the 38B's true width, ours and nvidia-modelopt's: CPU seconds and peak memory at equal tokens.

    PYTHONPATH=. python benchmarks/calibration_peer.py --environment /tmp/readers/modelopt [--layers 1 --layers 2]
        [--format fp8 --format int4-awq] [--repeats 3]

Makes modelopt's environment where there is none, with this one's torch. Both calibrate decoder layers of Qwen2-32B's
width on one sample of as many tokens, each run in a process of its own with one thread; they take turns. Ours is the
whole of `calibrate`: it reads the checkpoint, the embedding table included, and writes the artifact. modelopt's is
`mtq.quantize` of a model in memory, which neither loads nor writes. AWQ has all linears but down_proj, whose Gram
matrix takes 3 GB; ours also searches where to clip. A layer needs about 2 GB of disk. Results:
benchmarks/results/<date>-calibration-peer.json.
"""

from __future__ import annotations

import importlib.metadata
import json
import resource
import shutil
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import click
import torch
from calibration_memory import make_checkpoint
from checkpoint_export import SMALL_TOWER
from environments import environment_of
from measure import interleaved, machine, ratio, write_results
from unified_checkpoint import noise

from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.quantization.calibration.blockwise_runner import CalibrationOptions
from r1v_export.quantization.calibration.calibrate import calibrate
from r1v_export.quantization.calibration.matmul_precision import choose_matmul
from r1v_export.quantization.recipe import Recipe, Rule, load

PEER = Path(__file__).with_name("modelopt_calibration.py")
PACKAGES = ("transformers==5.23.0", "nvidia-modelopt==0.47.0", "requests", "huggingface_hub")
ATTENTION_AND_GATES = tuple(f"language_model.*.{name}_proj" for name in ("q", "k", "v", "o", "gate", "up"))


def recipe_of(kind: str) -> Recipe:
    """What modelopt's configuration of this name does."""
    if kind == "fp8":
        return load("fp8-tensor")
    shipped = load("int4-awq")
    rule = Rule(modules=ATTENTION_AND_GATES, scheme=shipped.rules[0].scheme)
    return shipped.model_copy(update={"rules": (rule,)})


def calibrate_one(folder: Path, kind: str) -> dict[str, float]:
    """What is measured of ours."""
    torch.set_num_threads(1)
    checkpoint, out = Checkpoint.open(folder), folder.with_name(f"calibration-{kind}")
    samples = noise(checkpoint)
    options = CalibrationOptions(matmul=choose_matmul("bfloat16", checkpoint, "cpu"))
    shutil.rmtree(out, ignore_errors=True)
    started = time.process_time()
    calibrate(checkpoint, recipe_of(kind), samples, out, options)
    seconds = time.process_time() - started
    shutil.rmtree(out)
    return {"cpu_seconds": seconds, "peak_rss_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6}


def read_json(command: list[str]) -> dict[str, float]:
    """What a process prints last."""
    run = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    measured: dict[str, float] = json.loads(run.stdout.splitlines()[-1])
    return measured


@click.command(help=__doc__)
@click.option("--environment", type=click.Path(path_type=Path), default=Path("/tmp/readers/modelopt"))
@click.option("--layers", "all_layers", multiple=True, type=click.IntRange(1), default=(1, 2), show_default=True)
@click.option("--format", "kinds", multiple=True, type=click.Choice(["fp8", "int4-awq"]), default=("fp8", "int4-awq"))
@click.option("--repeats", default=3, show_default=True)
@click.option("--work", type=click.Path(path_type=Path), default=Path("/tmp/r1v-calibration-peer"), show_default=True)
@click.option("--worker", nargs=2, hidden=True)
def main(
    environment: Path,
    all_layers: tuple[int, ...],
    kinds: tuple[str, ...],
    repeats: int,
    work: Path,
    worker: tuple[str, str] | None,
) -> None:
    if worker:
        print(json.dumps(calibrate_one(Path(worker[0]), worker[1])))
        return
    conditions = machine(("torch",))
    conditions["modelopt"] = PACKAGES
    torch_here = f"torch=={importlib.metadata.version('torch')}"
    python = str(environment_of(environment, ("install", "-q", torch_here, *PACKAGES)))
    rows: list[dict[str, Any]] = []
    for layers in sorted(all_layers):
        checkpoint = work / f"checkpoint-{layers}"
        if not checkpoint.exists():
            make_checkpoint(checkpoint, layers, vision_layers=1, overrides=SMALL_TOWER)
        tokens = len(noise(Checkpoint.open(checkpoint)).samples[0].token_ids)
        for kind in kinds:
            ours = [sys.executable, __file__, "--worker", str(checkpoint), kind]
            modelopt = [python, "-W", "ignore", str(PEER), kind, str(layers), str(tokens)]
            contenders = {"ours": partial(read_json, ours), "modelopt": partial(read_json, modelopt)}
            measured = interleaved(contenders, repeats)
            speed = ratio(measured, "modelopt", "ours", "cpu_seconds")
            rows.append({"format": kind, "layers": layers, "tokens": tokens, "modelopt_over_ours": speed} | measured)
    print(write_results("calibration-peer", {"machine": conditions, "threads": 1, "results": rows}))
    shutil.rmtree(work)


if __name__ == "__main__":
    main()
