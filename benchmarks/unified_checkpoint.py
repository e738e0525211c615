"""Unified checkpoints against nvidia-modelopt's own export, which runs in an environment of its own.

    python -m venv peer && peer/bin/pip install torch==2.13.0 transformers==5.23.0 nvidia-modelopt==0.47.0 requests
    python benchmarks/unified_checkpoint.py --modelopt peer/bin/python

Holds the tensors of a small language model to modelopt's, name by name and bit by bit, in every format: the same
weights and scales go into both.
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
from PIL import Image
from safetensors.torch import load_file, save_file

from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.checkpoint.synth import synthesize
from r1v_export.quantization.artifact.artifact import Artifact
from r1v_export.quantization.calibration.blockwise_runner import CalibrationOptions
from r1v_export.quantization.calibration.calibrate import calibrate
from r1v_export.quantization.calibration.dataset import CalibrationSet, prepare
from r1v_export.quantization.calibration.matmul_precision import choose_matmul
from r1v_export.quantization.calibration.raw_examples import RawExample
from r1v_export.quantization.number_formats import RANGES
from r1v_export.quantization.recipe import Recipe, load, parse
from r1v_export.targets.hf_unified.write.checkpoint import write_unified

PEER = Path(__file__).with_name("modelopt_export.py")
LANGUAGE = "language_model."
W4A8 = parse("""
name: w4a8-rtn
description: INT4 weights rounded to nearest, FP8 inputs.
rules:
  - modules: "language_model.*"
    scheme:
      weights: {type: int4, granularity: group, group_size: 128, algorithm: rtn}
      inputs: {type: fp8, mode: static}
""")
SCALES = ("weight_scale", "weights_scaling_factor", "per_channel_scale")
"""What only quantized linears have, in either layout."""
RECIPES = {
    "fp8": load("fp8-tensor").model_copy(update={"kv_cache": "fp8"}),
    "fp8-rowwise": load("fp8-rowwise"),
    "int4": load("int4-rtn"),
    "w4a8": W4A8,
}


def noise(checkpoint: Checkpoint) -> CalibrationSet:
    """One question about an image of noise."""
    record = RawExample("noise", (lambda: Image.effect_noise((448, 448), 64).convert("RGB"),), "What?", answer="Noise.")
    return prepare([record], checkpoint)


def calibrated(checkpoint: Checkpoint, recipe: Recipe, out: Path) -> Artifact:
    """Calibrated on that, in the precision that a build chooses; rounding to nearest uses none."""
    options = CalibrationOptions(matmul=choose_matmul("auto", checkpoint, "cpu"))
    calibrate(checkpoint, recipe, noise(checkpoint), out, options)
    return Artifact.open(out, checkpoint)


def language_folder(checkpoint: Checkpoint, out: Path, tensors: dict[str, torch.Tensor]) -> None:
    """A Qwen2 folder, as transformers reads it."""
    out.mkdir(parents=True)
    config = json.loads((checkpoint.folder / "config.json").read_text())["llm_config"]
    dtype = str(next(iter(tensors.values())).dtype).removeprefix("torch.")
    (out / "config.json").write_text(json.dumps(config | {"model_type": "qwen2", "torch_dtype": dtype}))
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})


def export_with_modelopt(python: str, *arguments: str | Path) -> None:
    subprocess.run([python, str(PEER), *map(str, arguments)], check=True, stdout=subprocess.DEVNULL)


def compare(kind: str, python: str, work: Path) -> dict[str, Any]:
    """How many of modelopt's tensors are ours bit for bit, given the same weights and scales."""
    checkpoint = Checkpoint.open(
        synthesize(work / "source", preset="nano", vision_layers=1, language_layers=2)
        if not (work / "source").exists()
        else work / "source"
    )
    artifact = calibrated(checkpoint, RECIPES[kind], work / kind / "calibration")
    (work / kind / "ours").mkdir()
    write_unified(checkpoint, artifact, work / kind / "ours")
    ours = {
        name.removeprefix(LANGUAGE): tensor
        for name, tensor in load_file(work / kind / "ours" / "model.safetensors").items()
        if name.startswith(LANGUAGE)
    }
    # modelopt rounds a division in the weights' dtype. In float32, dequantized weights give the same values again.
    linears = {name.removeprefix(LANGUAGE): linear for name, linear in artifact.linears() if name.startswith(LANGUAGE)}
    weights = {
        name.removeprefix(LANGUAGE): checkpoint.read(name).float()
        for name in checkpoint.tensors
        if name.startswith(LANGUAGE)
    }
    weights |= {f"{name}.weight": linear.dequantize() for name, linear in linears.items()}
    ranges = {}
    for name, linear in linears.items():
        ranges[f"{name}.weight"] = exact_range(ours[f"{name}.weight_scale"].float(), linear.weight_type)
        if linear.input_scale is not None:
            ranges[f"{name}.input"] = exact_range(linear.input_scale, "fp8")
        if f"{name}.weight_scale_2" in ours:
            ranges[f"{name}.weight_2"] = exact_range(ours[f"{name}.weight_scale_2"], "fp8")
    for layer in range(checkpoint.spec.language.num_layers):
        ranges |= cache_ranges(artifact, layer)
    language_folder(checkpoint, work / kind / "weights", weights)
    save_file(ranges, work / kind / "ranges.safetensors")
    kv_cache = ["--kv-cache", artifact.recipe.kv_cache] if artifact.recipe.kv_cache else []
    theirs_folder = work / kind / "theirs"
    arguments = ["--format", kind, "--amax", work / kind / "ranges.safetensors", *kv_cache]
    export_with_modelopt(python, work / kind / "weights", theirs_folder, *arguments)
    theirs = {n: t for path in theirs_folder.glob("*.safetensors") for n, t in load_file(path).items()}
    return {"format": kind, **differences(ours, theirs)}


def cache_ranges(artifact: Artifact, layer: int) -> dict[str, torch.Tensor]:
    """What modelopt's quantizers of a layer's keys and values are given."""
    scales = artifact.kv_scales(layer)
    if scales is None:
        return {}
    name = f"model.layers.{layer}.self_attn"
    return {f"{name}.{what}": exact_range(torch.tensor(scale), scales.kind) for what, scale in scales.items()}


def exact_range(scale: torch.Tensor, kind: str) -> torch.Tensor:
    """The range from which modelopt's division gives exactly this scale."""
    largest = RANGES[kind][1]
    for candidate in (scale * largest, torch.nextafter(scale * largest, scale * 2 * largest)):
        if torch.equal(candidate / largest, scale):
            return candidate
    candidate = scale * largest
    for _ in range(4):
        off = candidate / largest != scale
        step = torch.where(candidate / largest < scale, torch.inf, 0.0)
        candidate = torch.where(off, torch.nextafter(candidate, step), candidate)
    return candidate


def differences(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> dict[str, Any]:
    def same(name: str) -> bool:
        a, b = ours[name], theirs[name]
        if (name.endswith("norm.weight") or name.endswith("bias") or a.dtype != b.dtype) and a.dtype.is_floating_point:
            a, b = a.float(), b.float()  # unquantized tensors went to modelopt in float32
        return a.shape == b.shape and a.dtype == b.dtype and torch.equal(_bits(a), _bits(b))

    common = ours.keys() & theirs.keys()
    equal = [name for name in common if same(name)]
    linears = {name.rpartition(".")[0] for name in ours if name.endswith(SCALES)}
    quantized = [name for name in common if name.rpartition(".")[0] in linears and ".bias" not in name]
    return {
        "tensors": len(ours),
        "equal": len(equal),
        "quantized_tensors": len(quantized),
        "quantized_equal": len(set(quantized) & set(equal)),
        "different": sorted(common - set(equal)),
        "only_ours": sorted(ours.keys() - theirs.keys()),
        "only_modelopts": sorted(theirs.keys() - ours.keys()),
    }


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().flatten().view(torch.uint8)


@click.command(help=__doc__)
@click.option("--modelopt", "python", required=True, help="Python of an environment with nvidia-modelopt.")
@click.option("--work", type=click.Path(path_type=Path), default=Path("/tmp/r1v-unified"), show_default=True)
def main(python: str, work: Path) -> None:
    conditions = machine(("torch",))
    shutil.rmtree(work, ignore_errors=True)
    results = [compare(kind, python, work) for kind in RECIPES]
    shutil.rmtree(work)
    print(json.dumps(results, indent=2))
    print(write_results("unified-checkpoint-equal", {"machine": conditions, "results": results}))


if __name__ == "__main__":
    main()
