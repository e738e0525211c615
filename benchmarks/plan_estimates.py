"""What `build --dry-run` says of each stage, against what the stage took: r1v-nano, and a slice of the 38B.

The slice has one ViT block and one decoder layer of InternViT-6B's and Qwen2-32B's width; its weights are random and
its vocabulary is smaller, so that checkpoints and bundle take at most 6 GB of disk. A case is a build in a process of
its own; AWQ and GPTQ of a whole down_proj take up to 9 GB of memory. Written are, for each stage, seconds, bytes of
files, scratch files and anonymous memory, estimated and actual, and what the estimates were made from: the config and
the machine's measured rates. tests/pipeline/test_estimate.py estimates again from these and compares with what was
measured, so that a changed formula that is wrong is noticed; docs/plan_estimates.md is written from the same numbers.

Seconds mean something on an idle machine only. On a busy one, `OMP_NUM_THREADS=1` makes the CPU seconds that are
recorded too comparable with an estimate for one core, roughly.

    python benchmarks/plan_estimates.py [--case nano-fp32 ...] [--results FOLDER] [--page FILE]
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import click
import psutil
from build_bytes import anonymous_peak
from measure import RESULTS, machine, write_results

from r1v_export.checkpoint.synth import synthesize
from r1v_export.config import BUILTIN_MODEL, BuildConfig, CalibrationConfig, ParityConfig
from r1v_export.errors import ParityError
from r1v_export.pipeline.build import build, plan
from r1v_export.pipeline.rates import measured_rates
from r1v_export.progress import Progress, Task
from r1v_export.quantization.calibration.activations import Activations
from r1v_export.quantization.recipe import load

PAGE = Path(__file__).parents[1] / "docs/plan_estimates.md"

_SHAPE: dict[str, Any] = {
    "preset": "r1v3-38b",
    "vision_layers": 1,
    "language_layers": 1,
    "overrides": {"llm_config.vocab_size": 32768},
}
CHECKPOINTS: dict[str, dict[str, Any]] = {"slice": _SHAPE, "slice-awq": {**_SHAPE, "awq": True, "dtype": "float16"}}
"""What `synthesize` is given, besides weights."""


@dataclass(frozen=True)
class Case:
    """One build.

    Attributes:
        recipe: None builds in fp32, or as the checkpoint is quantized.
        checkpoint: of CHECKPOINTS; None is r1v-nano.
        samples: of the calibration.
        gate: None builds without.
    """

    target: str
    recipe: str | None = None
    checkpoint: str | None = None
    samples: int | None = None
    gate: Literal["whole", "streamed"] | None = None

    def config(self) -> BuildConfig:
        settings: dict[str, Any] = {"targets": {self.target: {}}}
        settings["parity"] = ParityConfig(enabled=self.gate is not None, gate=self.gate or "auto")
        if self.checkpoint != "slice-awq":
            matmul = "bfloat16" if self.checkpoint else "float32"
            settings["calibration"] = CalibrationConfig(samples=self.samples, matmul_precision=matmul)
            settings["precision"] = load(self.recipe).precision if self.recipe else "fp32"
        return BuildConfig(recipe=self.recipe, **settings)


CASES = {
    "nano-fp32": Case("onnxruntime", gate="whole"),
    "nano-fp8": Case("onnxruntime", "fp8", gate="whole"),
    "nano-int8-smoothquant": Case("onnxruntime", "int8-smoothquant", gate="whole"),
    "nano-int4-gptq": Case("hf-unified", "int4-gptq", gate="whole"),
    "nano-int4-onnxruntime": Case("onnxruntime", "int4-gptq", gate="whole"),
    "nano-int4-awq": Case("hf-unified", "int4-awq", gate="streamed"),
    "nano-int4-rtn": Case("tensorrt-llm", "int4-rtn", gate="whole"),
    "slice-int4-rtn": Case("hf-unified", "int4-rtn", "slice", gate="streamed"),
    "slice-int4-rtn-onnxruntime": Case("onnxruntime", "int4-rtn", "slice"),
    "slice-fp8-tensor": Case("hf-unified", "fp8-tensor", "slice", samples=4),
    "slice-int4-awq": Case("hf-unified", "int4-awq", "slice", samples=4),
    "slice-int4-gptq": Case("hf-unified", "int4-gptq", "slice", samples=4),
    "slice-awq-imported": Case("tensorrt-llm", None, "slice-awq"),
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
    """Add to `sizes` the bytes of a calibration's activation files when every sample has gone through a block."""
    advance = Activations.advance

    def weigh(store: Activations, share_bytes: float = 0.0, *, is_last: bool = False) -> None:
        sizes.append(sum(path.stat().st_size for path in store.folder.glob("*.data")))
        advance(store, share_bytes, is_last=is_last)

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
    load_before, planned, measured = psutil.getloadavg()[0], plan(config, out), Measured()
    stages = build(_without_gate(config), out, progress=measured).manifest.stages
    if config.parity.enabled:
        with suppress(ParityError):  # random weights: the likeliest tokens are as good as tied
            build(config, out, progress=measured)
    shutil.rmtree(out)
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
    return {"load_before": load_before, "rates": rates, "stages": {**rows, "checkpoint-hash": hashed}}


def _without_gate(config: BuildConfig) -> BuildConfig:
    return config.model_copy(update={"parity": ParityConfig(enabled=False)})


def compared(case: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
    """Estimated and actual seconds of each stage, and of all. With one thread, seconds of the CPU are those of an idle
    machine."""
    actual = "cpu_s" if case["rates"]["cores"] == 1 else "actual_s"
    rows = {name: (row["estimated_s"], row[actual]) for name, row in case["stages"].items()}
    return {**rows, "all": (sum(row[0] for row in rows.values()), sum(row[1] for row in rows.values()))}


def page(record: Mapping[str, Any]) -> str:
    """The record as a page."""
    conditions, cases = record["machine"], record["cases"]
    cores = next(iter(cases.values()))["rates"]["cores"]
    busiest = max(case["load_before"] for case in cases.values())
    lines = [
        "# What a plan estimates, and what the build takes",
        "",
        "Written by `benchmarks/plan_estimates.py`, which builds r1v-nano and a slice of the 38B: one ViT block and",
        "one decoder layer of true width, random weights. Estimates follow from counted work and from rates that the",
        "plan measures on the machine. `tests/pipeline/test_estimate.py` holds every stage of five seconds or more,",
        "and each build as a whole, to a factor of 1.5, and files of more than 100 MB to 5 %. Estimates are for CPUs",
        "that do nothing else, as the plan says: the calibration of a 38B to fp8 with 4 samples, estimated with",
        "15 min 56 s, took 30 min 38 s at load 13 on two cores.",
        "",
        f"{conditions['cpu']}, {cores} {'core' if cores == 1 else 'cores'}, commit {conditions['commit']}; load before "
        f"a build at most {busiest:.1f}; seconds {'of the CPU' if cores == 1 else 'of the clock'}.",
        *([record["note"]] if "note" in record else []),
        "",
        "| build | stage | estimated | took | estimated / took |",
        "|---|---|---|---|---|",
    ]
    for name, case in cases.items():
        for stage, (estimated, actual) in compared(case).items():
            if stage == "all" or max(estimated, actual) >= 2:
                lines.append(
                    f"| {name} | {stage} | {estimated:.1f} s | {actual:.1f} s | {estimated / max(actual, 0.01):.2f} |"
                )
    return "\n".join(lines) + "\n"


@click.command()
@click.option("--case", "names", multiple=True, type=click.Choice(list(CASES)), default=tuple(CASES))
@click.option("--work", type=click.Path(path_type=Path), default=Path("/tmp/r1v-plan-estimates"), show_default=True)
@click.option("--results", type=click.Path(path_type=Path), default=RESULTS, show_default=True)
@click.option("--page", "page_path", type=click.Path(path_type=Path), default=PAGE, show_default=True)
@click.option("--worker", is_flag=True, hidden=True)
def main(names: tuple[str, ...], work: Path, results: Path, page_path: Path, worker: bool) -> None:
    if worker:
        (name,) = names
        config = CASES[name].config().model_copy(update={"model": _model(CASES[name], work)})
        print(json.dumps(measure(config, work / "bundle")))
        return
    record: dict[str, Any] = {"machine": machine(("torch", "onnx", "onnxruntime")), "checkpoints": CHECKPOINTS}
    shutil.rmtree(work, ignore_errors=True)
    record["cases"] = {}
    for name in names:
        case = CASES[name]
        if case.checkpoint and not (work / case.checkpoint).exists():
            synthesize(work / case.checkpoint, **CHECKPOINTS[case.checkpoint])
        command = [sys.executable, __file__, "--worker", "--case", name, "--work", str(work)]
        found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
        record["cases"][name] = {
            "checkpoint": case.checkpoint,
            "config": case.config().model_dump(mode="json", exclude_unset=True),
            **found,
        }
        for stage, (estimated, actual) in compared(found).items():
            print(f"{name:28} {stage:22} {estimated:8.2f} {actual:8.2f}", file=sys.stderr, flush=True)
        path = write_results("plan-estimates", record, results)
    shutil.rmtree(work)
    page_path.write_text(page(record), encoding="utf-8")
    print(path)


def _model(case: Case, work: Path) -> str:
    return str(work / case.checkpoint) if case.checkpoint else BUILTIN_MODEL


if __name__ == "__main__":
    main()
