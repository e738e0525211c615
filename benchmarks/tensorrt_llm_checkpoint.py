"""TensorRT-LLM checkpoints against nvidia-modelopt's own export, which runs in an environment of its own.

    python -m venv peer && peer/bin/pip install torch==2.13.0 transformers==5.23.0 nvidia-modelopt==0.47.0 requests
    python benchmarks/tensorrt_llm_checkpoint.py --modelopt peer/bin/python

Holds the tensors of a small language model to modelopt's, file by file and bit by bit: the same weights and scales go
into both, for one and two GPUs.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import click
import torch
from measure import machine, write_results
from safetensors.torch import load_file, save_file
from unified_checkpoint import LANGUAGE, RECIPES, cache_ranges, calibrated, differences, exact_range, language_folder

from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.checkpoint.synth import synthesize
from r1v_export.quantization.number_formats import RANGES
from r1v_export.quantization.recipe import load, parse
from r1v_export.targets.tensorrt_llm.checkpoint.mapping import Mapping
from r1v_export.targets.tensorrt_llm.checkpoint.writer import write_checkpoint

PEER = Path(__file__).with_name("modelopt_tensorrt_llm.py")
INT8 = parse("""
name: int8-rtn
description: INT8 weights rounded to nearest, INT8 inputs and cache.
rules:
  - modules: "language_model.*"
    scheme:
      weights: {type: int8, granularity: channel, algorithm: rtn}
      inputs: {type: int8, mode: static}
kv_cache: int8
""")
COMPARED = {**RECIPES, "fp8": load("fp8-tensor"), "int8": INT8}
"""Without FP8's cache: modelopt raises its scales to at least 1, here from a hundredth."""


def compare(kind: str, tp: int, python: str, work: Path) -> dict[str, Any]:
    """How many of modelopt's tensors are ours bit for bit, given the same weights and scales."""
    source = work / "source"
    if not source.exists():
        synthesize(source, preset="nano", vision_layers=1, language_layers=2)
    checkpoint = Checkpoint.open(source)
    folder = work / f"{kind}-{tp}"
    artifact = calibrated(checkpoint, COMPARED[kind], folder / "calibration")
    (folder / "ours").mkdir()
    write_checkpoint(checkpoint, artifact, folder / "ours", torch.bfloat16, parallel=Mapping(tp))
    linears = {name.removeprefix(LANGUAGE): linear for name, linear in artifact.linears() if name.startswith(LANGUAGE)}
    # modelopt rounds a division in the weights' dtype. In float32, dequantized weights give the same values again.
    weights = {n.removeprefix(LANGUAGE): checkpoint.read(n).float() for n in checkpoint.tensors if LANGUAGE in n}
    weights |= {f"{name}.weight": linear.dequantize() for name, linear in linears.items()}
    ranges = {}
    for name, linear in linears.items():
        scale = linear.scale[0] if kind == "fp8" else linear.scale
        ranges[f"{name}.weight"] = exact_range(scale, linear.weight_type)
        if linear.input_scale is not None:
            ranges[f"{name}.input"] = exact_range(linear.input_scale, linear.input_type)
        if kind == "w4a8":
            # What the kernel multiplies must be within FP8; how far within is a free choice, so modelopt is given ours.
            ranges[f"{name}.weight_2"] = exact_range(8 * linear.scale.max() / RANGES["fp8"][1], "fp8")
    for layer in range(checkpoint.spec.language.num_layers):
        ranges |= cache_ranges(artifact, layer)
    language_folder(checkpoint, folder / "weights", weights)
    save_file({name: tensor.contiguous() for name, tensor in ranges.items()}, folder / "ranges.safetensors")
    arguments = ["--format", kind, "--tp", tp, "--amax", folder / "ranges.safetensors"]
    if artifact.recipe.kv_cache is not None:
        arguments += ["--kv-cache", artifact.recipe.kv_cache]
    export_with_modelopt(python, folder / "weights", folder / "theirs", *arguments)
    counted = [
        differences(load_file(path), load_file(folder / "theirs" / path.name))
        for path in sorted((folder / "ours").glob("rank*.safetensors"))
    ]
    return {"format": kind, "tp": tp, "ranks": counted}


def export_with_modelopt(python: str, *arguments: object) -> None:
    subprocess.run([python, str(PEER), *map(str, arguments)], check=True, stdout=subprocess.DEVNULL)


@click.command(help=__doc__)
@click.option("--modelopt", "python", required=True, help="Python of an environment with nvidia-modelopt.")
@click.option("--work", type=click.Path(path_type=Path), default=Path("/tmp/r1v-tensorrt-llm"), show_default=True)
def main(python: str, work: Path) -> None:
    conditions = machine(("torch",))
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    results = [compare(name, tp, python, work) for name in COMPARED for tp in (1, 2)]
    shutil.rmtree(work)
    print(json.dumps(results, indent=2))
    print(write_results("tensorrt-llm-checkpoint-equal", {"machine": conditions, "results": results}))


if __name__ == "__main__":
    main()
