"""TensorRT-LLM checkpoints against nvidia-modelopt's own export, which runs in an environment of its own.

    python -m venv peer && peer/bin/pip install torch==2.13.0 transformers==5.23.0 nvidia-modelopt==0.47.0 requests
    python benchmarks/tensorrt_llm_checkpoint.py --modelopt peer/bin/python --equal
    python benchmarks/tensorrt_llm_checkpoint.py --modelopt peer/bin/python [--layers 2 --layers 4 ...]

`--equal` holds the tensors of a small language model to modelopt's, file by file and bit by bit: the same weights and
scales go into both, for one and two GPUs. Without it: seconds, peak memory and bytes per weight of a slice of the 38B's
true width (decoder layers, embeddings, head) in each format, each in a process of its own. Every finished row is kept:
the same command goes on where it was stopped. Needs about 1.5 GB of disk a layer.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click
import torch
from build_memory import peak_of
from calibration_memory import make_checkpoint
from measure import machine, write_results
from safetensors.torch import load_file, save_file
from unified_checkpoint import LANGUAGE, RECIPES, cache_ranges, calibrated, differences, exact_range, language_folder

from r1v_export.builders.tensorrt_llm.parallel import Parallel
from r1v_export.builders.tensorrt_llm.writer import write_checkpoint
from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.checkpoint.names import expected_tensors
from r1v_export.checkpoint.synth import synthesize
from r1v_export.quantization.artefact import Artefact
from r1v_export.quantization.linear import RANGES
from r1v_export.quantization.recipe import load, parse

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
MEASURED = ("bf16", "int4", "fp8")
PEER_LAYERS = 4
"""The deepest slice that modelopt is given: it holds the model twice."""


def compare(kind: str, tp: int, python: str, work: Path) -> dict[str, Any]:
    """How many of modelopt's tensors are ours bit for bit, given the same weights and scales."""
    source = work / "source"
    if not source.exists():
        synthesize(source, preset="nano", vision_layers=1, language_layers=2)
    checkpoint = Checkpoint.open(source)
    folder = work / f"{kind}-{tp}"
    artefact = calibrated(checkpoint, COMPARED[kind], folder / "calibration")
    (folder / "ours").mkdir()
    write_checkpoint(checkpoint, artefact, folder / "ours", torch.bfloat16, parallel=Parallel(tp))
    linears = {name.removeprefix(LANGUAGE): linear for name, linear in artefact.linears() if name.startswith(LANGUAGE)}
    # modelopt rounds a division in the weights' dtype. In float32, what was dequantised comes back as the same codes.
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
        ranges |= cache_ranges(artefact, layer)
    language_folder(checkpoint, folder / "weights", weights)
    save_file({name: tensor.contiguous() for name, tensor in ranges.items()}, folder / "ranges.safetensors")
    arguments = ["--format", kind, "--tp", tp, "--amax", folder / "ranges.safetensors"]
    if artefact.recipe.kv_cache is not None:
        arguments += ["--kv-cache", artefact.recipe.kv_cache]
    export_with_modelopt(python, folder / "weights", folder / "theirs", *arguments)
    counted = [
        differences(load_file(path), load_file(folder / "theirs" / path.name))
        for path in sorted((folder / "ours").glob("rank*.safetensors"))
    ]
    return {"format": kind, "tp": tp, "ranks": counted}


def export_with_modelopt(python: str, *arguments: object) -> None:
    subprocess.run([python, str(PEER), *map(str, arguments)], check=True, stdout=subprocess.DEVNULL)


def measure(kind: str, layers: int, python: str, work: Path) -> dict[str, Any]:
    """Seconds and peak resident set of ours and modelopt's, one after the other.

    Ours is writing alone, from a calibration that is there; modelopt's `seconds` are loading, quantising and exporting,
    its `export_seconds` the last of them.
    """
    slice_ = work / f"slice-{layers}"
    if not (slice_ / "language").exists():
        for other in work.glob("slice-*"):
            shutil.rmtree(other)
        make_checkpoint(slice_ / "source", layers)
        checkpoint = Checkpoint.open(slice_ / "source")
        tensors = {n.removeprefix(LANGUAGE): checkpoint.read(n) for n in checkpoint.tensors if n.startswith(LANGUAGE)}
        language_folder(checkpoint, slice_ / "language", tensors)
    checkpoint = Checkpoint.open(slice_ / "source")
    if kind in RECIPES and not (slice_ / kind).exists():
        calibrated(checkpoint, RECIPES[kind], slice_ / kind)
    parameters = sum(torch.Size(s).numel() for n, s in expected_tensors(checkpoint.spec).items() if LANGUAGE in n)
    result: dict[str, Any] = {"format": kind, "layers": layers}
    contenders = {
        "ours": [sys.executable, __file__, "--write", kind, "--modelopt", python, "--work", str(slice_)],
        "modelopt": [python, str(PEER), str(slice_ / "language"), str(slice_ / "theirs"), "--format", kind],
    }
    if layers > PEER_LAYERS:
        del contenders["modelopt"]
    for name, command in contenders.items():
        out = slice_ / ("written" if name == "ours" else "theirs")
        shutil.rmtree(out, ignore_errors=True)
        started = time.monotonic()
        peak = peak_of(command)
        written = sum(path.stat().st_size for path in out.glob("rank*.safetensors"))
        result[name] = {
            "seconds": round(time.monotonic() - started, 1),
            "peak_rss_gb": round(peak / 1e9, 2),
            "bytes_per_weight": round(written / parameters, 3),
        }
        if name == "modelopt":
            steps = json.loads((out / "seconds.json").read_text())
            result[name]["export_seconds"] = round(steps["export"], 1)
        shutil.rmtree(out, ignore_errors=True)
    print(f"  {result}", file=sys.stderr, flush=True)
    return result


def write_one(kind: str, slice_: Path) -> None:
    """What is measured."""
    checkpoint = Checkpoint.open(slice_ / "source")
    artefact = None if kind == "bf16" else Artefact.open(slice_ / kind, checkpoint)
    (slice_ / "written").mkdir()
    write_checkpoint(checkpoint, artefact, slice_ / "written", torch.bfloat16)


def measure_all(layers: tuple[int, ...], python: str, work: Path) -> list[dict[str, Any]]:
    """Every row, those of an earlier, stopped run from their file."""
    rows_file = work / "rows.json"
    rows: list[dict[str, Any]] = json.loads(rows_file.read_text()) if rows_file.exists() else []
    for count in sorted(layers):
        for kind in MEASURED:
            if not any((row["format"], row["layers"]) == (kind, count) for row in rows):
                rows.append(measure(kind, count, python, work))
                rows_file.write_text(json.dumps(rows))
    return rows


@click.command(help=__doc__)
@click.option("--modelopt", "python", required=True, help="Python of an environment with nvidia-modelopt.")
@click.option("--equal", is_flag=True, help="Compare tensors instead of time and memory.")
@click.option("--layers", multiple=True, type=click.IntRange(1), default=(2, 4, 8), show_default=True)
@click.option("--work", type=click.Path(path_type=Path), default=Path("/tmp/r1v-tensorrt-llm"), show_default=True)
@click.option("--write", "kind", hidden=True)
def main(python: str, equal: bool, layers: tuple[int, ...], work: Path, kind: str | None) -> None:
    if kind is not None:
        write_one(kind, work)
        return
    conditions = machine(("torch",))
    work.mkdir(parents=True, exist_ok=True)
    if equal:
        shutil.rmtree(work)
        results = [compare(name, tp, python, work) for name in COMPARED for tp in (1, 2)]
    else:
        results = measure_all(layers, python, work)
    shutil.rmtree(work)
    print(json.dumps(results, indent=2))
    print(
        write_results(
            f"tensorrt-llm-checkpoint{'-equal' if equal else ''}", {"machine": conditions, "results": results}
        )
    )


if __name__ == "__main__":
    main()
