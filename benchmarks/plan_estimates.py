"""What `build --dry-run` says of each stage, against what the stage took: r1v-nano, and a slice of the 38B.

The slice has two ViT blocks and two decoder layers of InternViT-6B's and Qwen2-32B's width; its weights are sparse and
its vocabulary is smaller, so that a build takes at most 3 GB of disk. Written are, for each stage, seconds, bytes of
files, scratch files and anonymous memory, estimated and actual, and what the estimates were made from: the config and
the machine's measured rates. tests/pipeline/test_estimate.py estimates again from these and compares with what was
measured, so a changed formula needs a new measurement.

Seconds mean something on an idle machine only. On a busy one, `OMP_NUM_THREADS=1` and the column of CPU seconds show
what a formula counts wrongly.

    python benchmarks/plan_estimates.py [--case nano-fp32 ...] [--results FOLDER]
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import psutil
from build_bytes import anonymous_peak
from measure import RESULTS, machine, write_results

from r1v_export.checkpoint.synth import synthesize
from r1v_export.config import BuildConfig, CalibrationConfig, ParityConfig
from r1v_export.errors import ParityError
from r1v_export.pipeline.build import build, plan
from r1v_export.pipeline.estimate import measured_rates
from r1v_export.progress import Progress, Task
from r1v_export.quantization.calibration.activations import Activations
from r1v_export.quantization.recipe import load

SLICE: dict[str, Any] = {
    "preset": "r1v3-38b",
    "vision_layers": 2,
    "language_layers": 2,
    "overrides": {"llm_config.vocab_size": 32768},
}


@dataclass(frozen=True)
class Case:
    """One build.

    Attributes:
        slice: of the slice, not of r1v-nano.
        recipe: None builds in fp32.
        samples: of the calibration.
        gate: None builds without.
    """

    slice: bool
    recipe: str | None
    target: str
    samples: int | None = None
    gate: str | None = "whole"

    def config(self) -> BuildConfig:
        return BuildConfig(
            precision=load(self.recipe).precision if self.recipe else "fp32",
            recipe=self.recipe,
            targets={self.target: {}},
            calibration=CalibrationConfig(
                samples=self.samples, matmul_precision="bfloat16" if self.slice else "float32"
            ),
            parity=ParityConfig.model_validate({"enabled": self.gate is not None, "gate": self.gate or "auto"}),
        )


CASES = {
    "nano-fp32": Case(False, None, "onnxruntime"),
    "nano-fp8": Case(False, "fp8", "onnxruntime"),
    "nano-int8-smoothquant": Case(False, "int8-smoothquant", "onnxruntime"),
    "nano-int4-gptq": Case(False, "int4-gptq", "hf-unified"),
    "nano-int4-awq": Case(False, "int4-awq", "hf-unified", gate="streamed"),
    "nano-int4-rtn": Case(False, "int4-rtn", "tensorrt-llm"),
    "slice-int4-rtn": Case(True, "int4-rtn", "hf-unified", gate="streamed"),
    "slice-int4-rtn-onnxruntime": Case(True, "int4-rtn", "onnxruntime", gate=None),
    "slice-fp8-tensor": Case(True, "fp8-tensor", "hf-unified", samples=4, gate=None),
    "slice-int4-awq": Case(True, "int4-awq", "hf-unified", samples=4, gate=None),
}


class Measured(Progress):
    """Shows nothing, and remembers what each stage took."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.took: dict[str, dict[str, float]] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[Task]:
        scratch, cpu_before = [0], _cpu_s()
        try:
            with anonymous_peak() as peak, _weighed_activations(scratch), super().stage(name) as task:
                yield task
        finally:
            took = {
                "actual_s": round(task.elapsed_s, 2),
                "cpu_s": round(_cpu_s() - cpu_before, 2),
                "actual_memory_bytes": peak[-1],
                "actual_scratch_bytes": max(scratch),
            }
            self.took.setdefault(name, took)  # the second build is there for its gate


@contextmanager
def _weighed_activations(sizes: list[int]) -> Iterator[None]:
    """Add to `sizes` the bytes of a calibration's activation files whenever a block has written its own."""
    advance = Activations.advance

    def weigh(store: Activations) -> None:
        store.complete()
        sizes.append(sum(path.stat().st_size for path in store.folder.glob("*.data")))
        advance(store)

    Activations.advance = weigh  # type: ignore[method-assign]
    try:
        yield
    finally:
        Activations.advance = advance  # type: ignore[method-assign]


def _cpu_s() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def measure(config: BuildConfig, out: Path) -> dict[str, Any]:
    """Every stage, estimated and actual."""
    shutil.rmtree(out, ignore_errors=True)
    measured_rates.cache_clear()
    load, planned, measured = psutil.getloadavg()[0], plan(config, out), Measured()
    stages = build(_without_gate(config), out, progress=measured).manifest.stages
    if config.parity.enabled:
        with suppress(ParityError):  # random weights: the likeliest tokens are as good as tied
            build(config, out, progress=measured)
    rows = {}
    for stage in planned:
        files = stages[stage.name].files.values() if stage.name in stages else ()
        rows[stage.name] = {
            "estimated_s": round(stage.seconds, 2),
            **measured.took[stage.name],
            "estimated_bytes": stage.size_bytes,
            "actual_bytes": sum(file.size for file in files),
            "estimated_memory_bytes": stage.memory_bytes,
            "estimated_scratch_bytes": stage.scratch_bytes,
        }
    hashed = {"estimated_s": 0.0, **measured.took["checkpoint-hash"]}
    rates = asdict(measured_rates())
    return {"load_before": load, "rates": rates, "stages": {**rows, "checkpoint-hash": hashed}}


def _without_gate(config: BuildConfig) -> BuildConfig:
    return config.model_copy(update={"parity": ParityConfig(enabled=False)})


@click.command()
@click.option("--case", "names", multiple=True, type=click.Choice(list(CASES)), default=tuple(CASES))
@click.option("--work", type=click.Path(path_type=Path), default=Path("/tmp/r1v-plan-estimates"), show_default=True)
@click.option("--results", type=click.Path(path_type=Path), default=RESULTS, show_default=True)
def main(names: tuple[str, ...], work: Path, results: Path) -> None:
    conditions, cases = machine(("torch", "onnx", "onnxruntime")), {}
    shutil.rmtree(work, ignore_errors=True)
    for name in names:
        case = CASES[name]
        config = case.config()
        if case.slice:
            if not (work / "slice").exists():
                synthesize(work / "slice", **SLICE, weights="sparse")
            config = config.model_copy(update={"model": str(work / "slice")})
        found = measure(config, work / "bundle")
        cases[name] = {"config": case.config().model_dump(mode="json"), "is_slice": case.slice, **found}
        _show(name, found)
        shutil.rmtree(work / "bundle")
        path = write_results("plan-estimates", {"machine": conditions, "slice": SLICE, "cases": cases}, results)
    shutil.rmtree(work)
    print(path)


def _show(name: str, found: dict[str, Any]) -> None:
    print(f"{name}, load {found['load_before']:.1f}, {found['rates']}", file=sys.stderr)
    for stage, row in found["stages"].items():
        numbers = " ".join(
            f"{key.removesuffix('_s')} {value:.2f}"
            if key.endswith("_s")
            else f"{key.removesuffix('_bytes')} {value / 1e6:.2f}M"
            for key, value in row.items()
        )
        print(f"  {stage:20} {numbers}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
