"""Calibration at the 38B's width or half of it, ours and nvidia-modelopt's: CPU seconds and memory at equal tokens.

    PYTHONPATH=. python benchmarks/calibration_peer.py --environment /tmp/readers/modelopt [--layers 1 --layers 2]
        [--part 2] [--format fp8 --format int4-awq --format int4-gptq] [--tokens 1024] [--repeats 3] [--results NAME]

Makes modelopt's environment where there is none, with this one's torch. Both calibrate decoder layers of Qwen2-32B's
width on one sample of as many tokens, each run in a process of its own with one thread; they take turns. Ours is the
whole of `calibrate`: it reads the checkpoint, the embedding table included, and writes the artifact. modelopt's is
`mtq.quantize` of a model in memory, which neither loads nor writes.

INT4 is in groups of 128. AWQ's alpha goes in steps of 0.1 in both and nothing is clipped, as in modelopt's own
configuration; "ours, as shipped" has steps of 0.05, and searches where to clip. At true width AWQ omits down_proj,
whose Gram matrix takes 3 GB. GPTQ has the linears of attention alone, without clipping and with 1 % of damping: for
each column modelopt rounds the whole weight again, which takes hours for the others. A layer of true width needs about
2 GB of disk. Results: benchmarks/results/<date>-NAME.json.
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
import psutil
import torch
from calibration_memory import make_checkpoint
from checkpoint_export import SMALL_TOWER
from environments import environment_of
from measure import interleaved, machine, ratio, write_results
from PIL import Image

from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.quantization.calibration.blockwise_runner import CalibrationOptions
from r1v_export.quantization.calibration.calibrate import calibrate
from r1v_export.quantization.calibration.dataset import CalibrationSet, prepare
from r1v_export.quantization.calibration.matmul_precision import choose_matmul
from r1v_export.quantization.calibration.raw_examples import RawExample
from r1v_export.quantization.recipe import Recipe, Rule, load

KINDS = ("fp8", "int4-awq", "int4-gptq")
AS_SHIPPED = "ours, as shipped"
PEER = Path(__file__).with_name("modelopt_calibration.py")
PACKAGES = ("transformers==5.23.0", "nvidia-modelopt==0.47.0", "requests", "huggingface_hub")
_TOKENS_OF_A_WORD = 8
"""At most."""
LINEARS = ("q", "k", "v", "o", "gate", "up", "down")
EQUAL: dict[str, dict[str, Any]] = {"int4-awq": {"grid": 10, "clip": False}, "int4-gptq": {"clip": False}}
"""Settings of our recipes with which both do the same work."""


def omitted(kind: str, part: int) -> tuple[str, ...]:
    """Linears that stay as they are."""
    if kind == "int4-gptq":
        return LINEARS[4:]
    return LINEARS[6:] if kind == "int4-awq" and part == 1 else ()


def recipe_of(kind: str, part: int, *, as_shipped: bool) -> Recipe:
    """What modelopt's configuration of this name does, or what ours does with those linears.

    Args:
        part: of the width, such as 2 for half of it.
    """
    if kind == "fp8":
        return load("fp8-tensor")
    shipped = load(kind)
    scheme = shipped.rules[0].scheme
    if not as_shipped:
        scheme = scheme.model_copy(update={"weights": scheme.weights.model_copy(update=EQUAL[kind])})
    modules = tuple(f"language_model.*.{name}_proj" for name in LINEARS if name not in omitted(kind, part))
    return shipped.model_copy(update={"rules": (Rule(modules=modules, scheme=scheme),)})


def narrowed(part: int) -> dict[str, object]:
    """What makes the model a part as wide, and its vocabulary as small as its tokenizer allows."""
    sizes = {"hidden_size": 5120, "intermediate_size": 27648, "num_attention_heads": 40, "num_key_value_heads": 8}
    return {f"llm_config.{name}": size // part for name, size in sizes.items()} | {"llm_config.vocab_size": 32768}


def samples_of(checkpoint: Checkpoint, tokens: int) -> CalibrationSet:
    """A question about an image of noise, with an answer that makes it so many tokens long."""
    image = partial(Image.effect_noise, (448, 448), 64)
    length = 0
    while True:
        record = RawExample("noise", (lambda: image().convert("RGB"),), "What?", answer="Noise. " * length)
        samples = prepare([record], checkpoint)
        missing = tokens - len(samples.samples[0].token_ids)
        if missing <= 0:
            return samples
        length += max(1, missing // _TOKENS_OF_A_WORD)


def calibrate_one(folder: Path, kind: str, tokens: int, part: int, *, as_shipped: bool) -> dict[str, float]:
    """What is measured of ours."""
    torch.set_num_threads(1)
    checkpoint, out = Checkpoint.open(folder), folder.with_name(f"calibration-{kind}")
    samples = samples_of(checkpoint, tokens)
    options = CalibrationOptions(matmul=choose_matmul("bfloat16", checkpoint, "cpu"))
    shutil.rmtree(out, ignore_errors=True)
    started = time.process_time()
    calibrate(checkpoint, recipe_of(kind, part, as_shipped=as_shipped), samples, out, options)
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
@click.option("--part", default=1, show_default=True, help="Of the width: 2 for half of it.")
@click.option("--format", "kinds", multiple=True, type=click.Choice(KINDS), default=KINDS, show_default=True)
@click.option("--tokens", default=1024, show_default=True, help="Of the sample, at least.")
@click.option("--repeats", default=3, show_default=True)
@click.option("--work", type=click.Path(path_type=Path), default=Path("/tmp/r1v-calibration-peer"), show_default=True)
@click.option("--results", "name", default="calibration-peer", show_default=True, help="Name of their file.")
@click.option("--worker", nargs=3, hidden=True)
def main(
    environment: Path,
    all_layers: tuple[int, ...],
    part: int,
    kinds: tuple[str, ...],
    tokens: int,
    repeats: int,
    work: Path,
    name: str,
    worker: tuple[str, str, str] | None,
) -> None:
    if worker:
        folder, kind, how = worker
        print(json.dumps(calibrate_one(Path(folder), kind, tokens, part, as_shipped=how == AS_SHIPPED)))
        return
    conditions = machine(("torch",))
    conditions["modelopt"] = PACKAGES
    torch_here = f"torch=={importlib.metadata.version('torch')}"
    python = str(environment_of(environment, ("install", "-q", torch_here, *PACKAGES)))
    rows: list[dict[str, Any]] = []
    for layers in sorted(all_layers):
        checkpoint = work / f"checkpoint-{layers}"
        if not checkpoint.exists():
            make_checkpoint(checkpoint, layers, vision_layers=1, overrides=SMALL_TOWER | narrowed(part))
        found = len(samples_of(Checkpoint.open(checkpoint), tokens).samples[0].token_ids)
        for kind in kinds:
            ours = [sys.executable, __file__, "--tokens", str(tokens), "--part", str(part), "--worker", str(checkpoint)]
            left = omitted(kind, part)
            modelopt = [python, "-W", "ignore", str(PEER), kind, *map(str, (layers, found, part)), *left]
            ways = ("ours", AS_SHIPPED) if kind in EQUAL else ("ours",)
            contenders = {way: partial(read_json, [*ours, kind, way]) for way in ways}
            load = psutil.getloadavg()[0]
            measured = interleaved(contenders | {"modelopt": partial(read_json, modelopt)}, repeats)
            row = {"format": kind, "layers": layers, "part": part, "tokens": found, "omitted": left}
            speed = {"modelopt_over_ours": ratio(measured, "modelopt", "ours", "cpu_seconds")}
            rows.append(row | speed | {"load_average": [load, psutil.getloadavg()[0]]} | measured)
            print(write_results(name, {"machine": conditions, "threads": 1, "results": rows}), file=sys.stderr)
    shutil.rmtree(work)


if __name__ == "__main__":
    main()
