"""Quantized checkpoints at the 38B's true width, ours and nvidia-modelopt's: seconds, peak memory, bytes per weight.

    python benchmarks/checkpoint_export.py --modelopt peer/bin/python [--layers 2 --layers 4 ...] [--format int4 ...]

The slice is a language model of Qwen2-32B's width (decoder layers, embeddings, head) behind a vision tower too small to
count. Both round to nearest and process as many tokens; each step of ours, and each run of modelopt's, is a process of
its own, and none of them may take more memory than was free (modelopt's 8 layers may not fit). Seconds are those of the
steps themselves, without imports, and without a disk: checkpoints go into memory (`--out`), because throttled writes
were half of the time and varied threefold. Every finished row is kept: the same command resumes.
For modelopt's environment see `unified_checkpoint.py`. Needs about 3 GB of disk a layer, and 10 GB.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click
import psutil
import torch
from build_memory import peak_of
from calibration_memory import make_checkpoint
from measure import machine, write_results
from tensorrt_llm_checkpoint import COMPARED
from tensorrt_llm_checkpoint import PEER as TENSORRT_LLM_PEER
from unified_checkpoint import LANGUAGE, calibrated, language_folder, noise
from unified_checkpoint import PEER as UNIFIED_PEER

from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.checkpoint.names import expected_tensors
from r1v_export.checkpoint.tensor_file import read_header
from r1v_export.quantization.artifact.artifact import Artifact
from r1v_export.targets.hf_unified.write.checkpoint import write_unified
from r1v_export.targets.tensorrt_llm.checkpoint.writer import write_checkpoint

SMALL_TOWER = {
    "vision_config.hidden_size": 128,
    "vision_config.num_attention_heads": 4,
    "vision_config.intermediate_size": 128,
}
PEERS = {"tensorrt-llm": TENSORRT_LLM_PEER, "hf-unified": UNIFIED_PEER}
FORMATS = ("int4", "fp8", "w4a8", "fp8-rowwise", "int8", "bf16")
TARGETS = {"int8": ("tensorrt-llm",), "bf16": ("tensorrt-llm",)}
"""Of formats that not both targets have."""
LEFT_FREE_BYTES = 2 << 30


def step(name: str, kind: str, slice_: Path, out: Path) -> None:
    """What is measured of ours."""
    checkpoint, started = Checkpoint.open(slice_ / "source"), time.monotonic()
    if name == "calibrate":
        calibrated(checkpoint, COMPARED[kind], slice_ / kind)
    else:
        artifact = None if kind == "bf16" else Artifact.open(slice_ / kind, checkpoint)
        if name == "tensorrt-llm":
            write_checkpoint(checkpoint, artifact, out, torch.bfloat16)
        elif artifact is not None:
            write_unified(checkpoint, artifact, out)
    (slice_ / "times.json").write_text(json.dumps({name: time.monotonic() - started}))


def make_slice(layers: int, work: Path) -> Path:
    """The checkpoint, and its language model as modelopt reads it."""
    slice_ = work / f"slice-{layers}"
    if not (slice_ / "language" / "config.json").exists():
        for other in work.glob("slice-*"):
            shutil.rmtree(other)
        make_checkpoint(slice_ / "source", layers, vision_layers=1, overrides=SMALL_TOWER)
        checkpoint = Checkpoint.open(slice_ / "source")
        tensors = {n.removeprefix(LANGUAGE): checkpoint.read(n) for n in checkpoint.tensors if n.startswith(LANGUAGE)}
        language_folder(checkpoint, slice_ / "language", tensors)
    return slice_


def measure(kind: str, layers: int, python: str, work: Path, out: Path) -> dict[str, Any]:
    """One row: ours and modelopt's, one after the other."""
    slice_ = make_slice(layers, work)
    checkpoint = Checkpoint.open(slice_ / "source")
    parameters = sum(torch.Size(s).numel() for n, s in expected_tensors(checkpoint.spec).items() if LANGUAGE in n)
    tokens = len(noise(checkpoint).samples[0].token_ids)
    ours = [sys.executable, __file__, "--modelopt", python, "--work", str(slice_), "--out", str(out)]
    ours += ["--format", kind, "--step"]
    row: dict[str, Any] = {"format": kind, "layers": layers, "tokens": tokens, "ours": {}, "modelopt": {}}
    if kind != "bf16":
        row["ours"]["calibrate"] = run([*ours, "calibrate"], slice_, out)
    for target in TARGETS.get(kind, tuple(PEERS)):
        row["ours"][target] = run([*ours, target], slice_, out, parameters)
        command = [python, str(PEERS[target]), str(slice_ / "language"), str(out), "--format", kind]
        command += ["--tokens", str(tokens), "--times", str(slice_ / "times.json")]
        if kind in COMPARED and COMPARED[kind].kv_cache is not None:
            command += ["--kv-cache", str(COMPARED[kind].kv_cache)]
        row["modelopt"][target] = run(command, slice_, out, parameters)
    shutil.rmtree(slice_ / kind, ignore_errors=True)
    print(f"  {row}", file=sys.stderr, flush=True)
    return row


def run(command: list[str], slice_: Path, out: Path, parameters: int | None = None) -> dict[str, Any]:
    """Peak resident set and seconds of a process, and bytes for each of `parameters` that it wrote.

    It gets the memory that is free and no more, so that what does not fit fails, and takes nothing else with it.
    """
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    os.sync()
    free = psutil.virtual_memory().available - LEFT_FREE_BYTES
    unlimited = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (free, unlimited[1]))
    try:
        peak = peak_of(command)
    except SystemExit:
        return {"did_not_fit_into_gb": round(free / 1e9, 1)}
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, unlimited)
    seconds = {name: round(value, 1) for name, value in json.loads((slice_ / "times.json").read_text()).items()}
    found: dict[str, Any] = {"peak_rss_gb": round(peak / 1e9, 2), "seconds": seconds}
    if parameters is not None:
        tensors = [tensor for path in out.glob("*.safetensors") for tensor in read_header(path).values()]
        language = [tensor.nbytes for tensor in tensors if not tensor.name.startswith(("vision_model.", "mlp1."))]
        found["bytes_per_weight"] = round(sum(language) / parameters, 3)
    shutil.rmtree(out)
    return found


@click.command(help=__doc__)
@click.option("--modelopt", "python", required=True, help="Python of an environment with nvidia-modelopt.")
@click.option("--layers", multiple=True, type=click.IntRange(1), default=(2, 4, 8), show_default=True)
@click.option("--format", "kinds", multiple=True, type=click.Choice(FORMATS), default=FORMATS, show_default=True)
@click.option("--work", type=click.Path(path_type=Path), default=Path("/tmp/r1v-checkpoints"), show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=Path("/dev/shm/r1v-checkpoints"), show_default=True)
@click.option("--step", "name", hidden=True)
def main(python: str, layers: tuple[int, ...], kinds: tuple[str, ...], work: Path, out: Path, name: str | None) -> None:
    if name is not None:
        step(name, kinds[0], work, out)
        return
    conditions, rows_file = machine(("torch",)), work / "rows.json"
    conditions["modelopt"] = subprocess.run(
        [python, "-W", "ignore", "-c", "import importlib.metadata as m; print(m.version('nvidia-modelopt'))"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    work.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = json.loads(rows_file.read_text()) if rows_file.exists() else []
    for count in sorted(layers):
        for kind in kinds:
            if not any((row["format"], row["layers"]) == (kind, count) for row in rows):
                rows.append(measure(kind, count, python, work, out))
                rows_file.write_text(json.dumps(rows))
    print(write_results("checkpoint-export", {"machine": conditions, "results": rows}))
    shutil.rmtree(work)


if __name__ == "__main__":
    main()
