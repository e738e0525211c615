"""Bytes, memory and time of a quantized build against what the machine allows.

Checkpoints with few ViT blocks and decoder layers (by default of InternViT-6B and Qwen2-32B width, in sparse files),
built without the parity gate. Reported are bytes that reached the disk over the bundle's size, hard links counted once,
bytes that came from it over those that the checkpoint takes on it (its files begin outside the page cache), the peak of
anonymous memory, and the wall time over the slowest of three limits, each measured in the same run: reading and hashing
the checkpoint once, writing as many bytes as the bundle has, and rounding its parameters on all cores. Times mean
something on an idle machine only.

    python benchmarks/build_bytes.py [--layers 2 --layers 8 ...] [--target hf-unified ...] [--recipe int4-rtn]
    python benchmarks/build_bytes.py --preset internvl3-1b --layers 8 --recipe int4-gptq --samples 8 --weights random

What a calibration saves for a killed one, within its share of the model and without a bound, at half the width:

    python benchmarks/build_bytes.py --half --layers 4 --vision-layers 2 --vocabulary 32768 --recipe fp8-tensor
        --samples 16 --save-after 5 --saved-share 0.02 --saved-share 1000

A checkpoint that memory holds is read once however often it is asked for. To see one that memory does not hold, run it
in a cgroup with a memory limit below its size (as root, with cgroup v1), and give it weights without holes:

    python benchmarks/build_bytes.py --layers 1 --weights random --vocabulary 32768 --cgroup-bytes 1300000000
"""

from __future__ import annotations

import itertools
import os
import shutil
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import click
import torch
from measure import machine, write_results

from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.checkpoint.synth import Weights, synthesize
from r1v_export.config import BuildConfig, CalibrationConfig, ParityConfig
from r1v_export.manifest import hash_file
from r1v_export.pipeline.build import build
from r1v_export.quantization.calibration.activations import SAVED_BY_DEFAULT
from r1v_export.quantization.quant_params import QuantParams
from r1v_export.quantization.recipe import load

_PIECE_BYTES = 64 << 20
Row = dict[str, Any]
HALF = {
    "vision_config.hidden_size": 1600,
    "vision_config.num_attention_heads": 25,
    "vision_config.intermediate_size": 6400,
    "llm_config.hidden_size": 2560,
    "llm_config.num_attention_heads": 20,
    "llm_config.num_key_value_heads": 4,
    "llm_config.intermediate_size": 13824,
}
"""Half of InternViT-6B's and Qwen2-32B's width."""


def counter(path: str, name: str) -> int:
    """A number of /proc/self, such as `write_bytes` of `io`."""
    lines = Path("/proc/self", path).read_text(encoding="utf-8").splitlines()
    return int(next(line for line in lines if line.startswith(f"{name}:")).split()[1])


@contextmanager
def anonymous_peak() -> Iterator[list[int]]:
    """Yield a list whose last entry is the most anonymous memory so far, in bytes."""
    peak, ended = [0], threading.Event()

    def watch() -> None:
        while not ended.wait(0.02):
            peak.append(max(peak.pop(), counter("status", "RssAnon") * 1024))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield peak
    finally:
        ended.set()
        thread.join()


def leave_page_cache(files: Iterable[Path]) -> None:
    """Make the next read of files come from the disk."""
    for path in files:
        with path.open("rb+") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


@contextmanager
def memory_limited(limit_bytes: int) -> Iterator[None]:
    """This process in a cgroup of its own, whose memory is limited, page cache included."""
    parent = Path("/sys/fs/cgroup/memory")
    group = parent / f"r1v-build-bytes-{os.getpid()}"
    group.mkdir()
    (group / "memory.limit_in_bytes").write_text(str(limit_bytes), encoding="ascii")
    (group / "cgroup.procs").write_text(str(os.getpid()), encoding="ascii")
    try:
        yield
    finally:
        (parent / "cgroup.procs").write_text(str(os.getpid()), encoding="ascii")
        group.rmdir()


def write_seconds(folder: Path, size_bytes: int) -> float:
    """Seconds to write and sync as many bytes, from the rate at 2 GiB."""
    piece, path, pieces = os.urandom(_PIECE_BYTES), folder / "written", 32
    started = time.monotonic()
    with path.open("wb") as file:
        for _ in range(pieces):
            file.write(piece)
        os.fsync(file.fileno())
    seconds = time.monotonic() - started
    path.unlink()
    return seconds * size_bytes / (pieces * _PIECE_BYTES)


def rounding_seconds(parameters: int) -> float:
    """Seconds to round as many parameters to INT4, from the rate of a linear of 26 million."""
    weight = torch.randn(5120, 5120).bfloat16()
    QuantParams.round_to_nearest(weight, "int4", 128)
    started = time.monotonic()
    for _ in range(4):
        QuantParams.round_to_nearest(weight, "int4", 128)
    return (time.monotonic() - started) / 4 * parameters / weight.numel()


def measure(
    config: BuildConfig,
    layers: int,
    vision_layers: int,
    preset: str,
    work: Path,
    weights: Weights,
    overrides: Mapping[str, int],
) -> Row:
    folder, out = work / "checkpoint", work / "bundle"
    shutil.rmtree(work, ignore_errors=True)
    depth = {"vision_layers": vision_layers, "language_layers": layers}
    synthesize(folder, preset=preset, **depth, overrides=overrides, weights=weights)
    checkpoint = Checkpoint.open(str(folder))
    leave_page_cache(checkpoint.files())
    started = time.monotonic()
    for path in checkpoint.files():
        hash_file(path)
    limits = {"read": time.monotonic() - started}
    build(config, work / "nano")  # so that what the program reads of itself does not count
    config = config.model_copy(update={"model": str(folder)})
    leave_page_cache(checkpoint.files())
    before = {name: counter("io", name) for name in ("read_bytes", "write_bytes")}
    cpu_before, started = os.times(), time.monotonic()
    with anonymous_peak() as peak:
        build(config, out)
    seconds, cpu = time.monotonic() - started, os.times()
    moved = {name: counter("io", name) - count for name, count in before.items()}
    checkpoint_bytes = sum(path.stat().st_blocks * 512 for path in checkpoint.files())
    sizes = {path.stat().st_ino: path.stat().st_size for path in out.rglob("*") if path.is_file()}
    bundle_bytes = sum(sizes.values())
    limits["write"] = write_seconds(work, bundle_bytes)
    limits["round"] = rounding_seconds(sum(info.nbytes // 2 for info in checkpoint.tensors.values()))
    shutil.rmtree(work)
    return {
        "layers": layers,
        "vision_layers": vision_layers,
        "saved_share": config.calibration.saved_share,
        "bundle_gb": round(bundle_bytes / 1e9, 2),
        "written_over_bundle": round(moved["write_bytes"] / bundle_bytes, 3),
        "read_over_checkpoint": round(moved["read_bytes"] / checkpoint_bytes, 3),
        "peak_anonymous_gb": round(peak[-1] / 1e9, 2),
        "wall_s": round(seconds, 1),
        "cpu_s": {"user": round(cpu.user - cpu_before.user, 1), "system": round(cpu.system - cpu_before.system, 1)},
        "limits_s": {name: round(limit, 1) for name, limit in limits.items()},
        "wall_over_slowest_limit": round(seconds / max(limits.values()), 2),
    }


@click.command()
@click.option("--layers", "all_layers", multiple=True, type=int, default=(2, 8, 32, 64), show_default=True)
@click.option("--vision-layers", type=int, help="ViT blocks of each; as many as decoder layers, if omitted.")
@click.option("--preset", default="r1v3-38b", show_default=True, help="Whose width.")
@click.option("--target", "targets", multiple=True, default=("hf-unified",), show_default=True)
@click.option("--recipe", default="int4-rtn", show_default=True)
@click.option("--samples", type=int, default=8, show_default=True, help="Of a recipe that calibrates.")
@click.option("--save-after", type=float, help="Seconds before a calibration saves activations; 300 if omitted.")
@click.option("--saved-share", "shares", multiple=True, type=float, help="Of a calibration; one build for each.")
@click.option("--half", is_flag=True, help="At half the width of Skywork-R1V.")
@click.option("--work", type=click.Path(path_type=Path), default=Path("/tmp/r1v-build-bytes"), show_default=True)
@click.option("--weights", type=click.Choice(["random", "sparse"]), default="sparse", show_default=True)
@click.option("--vocabulary", type=int, help="Tokens, instead of the preset's.")
@click.option("--cgroup-bytes", type=int, help="Limit of memory, page cache included.")
@click.option("--results", "results_name", default="build-bytes", show_default=True, help="Name of their file.")
def main(
    all_layers: tuple[int, ...],
    vision_layers: int | None,
    preset: str,
    targets: tuple[str, ...],
    recipe: str,
    samples: int,
    save_after: float | None,
    shares: tuple[float, ...],
    half: bool,
    work: Path,
    weights: Weights,
    vocabulary: int | None,
    cgroup_bytes: int | None,
    results_name: str,
) -> None:
    if save_after is not None:  # no option of a build: a slice takes less than what a whole model waits
        object.__setattr__(SAVED_BY_DEFAULT, "soonest_s", save_after)
    conditions, results = machine(("torch", "onnx", "onnx-ir")), []
    config = BuildConfig(
        precision=load(recipe).precision,
        recipe=recipe,
        targets={target: {} for target in targets},
        calibration=CalibrationConfig(samples=samples, effort="full", matmul_precision="bfloat16" if half else "auto"),
        parity=ParityConfig(enabled=False),
    )
    overrides = (HALF if half else {}) | ({"llm_config.vocab_size": vocabulary} if vocabulary else {})
    with memory_limited(cgroup_bytes) if cgroup_bytes else nullcontext():
        for layers, share in itertools.product(all_layers, shares or (SAVED_BY_DEFAULT.share,)):
            calibration = config.calibration.model_copy(update={"saved_share": share})
            each = config.model_copy(update={"calibration": calibration})
            results.append(measure(each, layers, vision_layers or layers, preset, work, weights, overrides))
            print(results[-1], file=sys.stderr, flush=True)
    settings = {"preset": preset, "targets": targets, "recipe": recipe, "samples": samples, "save_after": save_after}
    settings |= {"weights": weights, "vocabulary": vocabulary, "cgroup_bytes": cgroup_bytes, "half": half}
    print(write_results(results_name, {"machine": conditions, **settings, "results": results}))


if __name__ == "__main__":
    main()
