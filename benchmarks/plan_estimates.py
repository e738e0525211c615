"""What `build --dry-run` estimates for each stage, against what the stage took: r1v-nano, and a slice of the 38B.

The slice has one ViT block and one decoder layer of InternViT-6B's and Qwen2-32B's width and the whole vocabulary; its
weights are sparse. Times mean something on an idle machine only.

    python benchmarks/plan_estimates.py [--model nano|slice] [--recipe int4-awq ...] [--samples 8]
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from measure import machine, write_results

from r1v_export.checkpoint.synth import synthesize
from r1v_export.config import BUILTIN_MODEL, BuildConfig, CalibrationConfig, ParityConfig
from r1v_export.pipeline.build import build, plan
from r1v_export.progress import Progress, Task
from r1v_export.quantization.recipe import load

_RECIPES = ("int4-rtn", "fp8", "int4-awq", "int4-gptq")
_SHORT_S = 5.0
"""Stages that take less, estimated and in truth, are not rated: constants of a second or two decide them."""


class StageTimes(Progress):
    """Shows nothing, and remembers how long each stage took."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[Task]:
        with super().stage(name) as task:
            yield task
        self.seconds[name] = task.elapsed_s


def measure(model: str, recipe: str, target: str, samples: int, gate: bool, out: Path) -> list[dict[str, Any]]:
    """Every stage: estimated and actual seconds, and their ratio where either is long."""
    config = BuildConfig(
        model=model,
        precision=load(recipe).precision,
        recipe=recipe,
        targets={target: {}},
        calibration=CalibrationConfig(samples=samples),
        parity=ParityConfig(enabled=gate),
    )
    shutil.rmtree(out, ignore_errors=True)
    planned, times = plan(config, out), StageTimes()
    build(config, out, progress=times)
    rows = []
    for stage in planned:
        estimated, actual = stage.seconds, times.seconds.get(stage.name, 0.0)
        is_long = max(estimated, actual) >= _SHORT_S
        rated = {"ratio": round(estimated / actual, 2)} if is_long and actual else {}
        rows.append({"stage": stage.name, "estimated_s": round(estimated, 1), "actual_s": round(actual, 1), **rated})
    estimated, actual = sum(stage.seconds for stage in planned), sum(times.seconds.values())
    ratio = round(estimated / actual, 2)
    return [*rows, {"stage": "all", "estimated_s": round(estimated, 1), "actual_s": round(actual, 1), "ratio": ratio}]


@click.command()
@click.option("--model", "models", multiple=True, type=click.Choice(["nano", "slice"]), default=("nano", "slice"))
@click.option("--recipe", "recipes", multiple=True, default=_RECIPES, show_default=True)
@click.option("--target", default="hf-unified", show_default=True)
@click.option("--samples", type=int, default=8, show_default=True)
@click.option("--work", type=click.Path(path_type=Path), default=Path("/tmp/r1v-plan-estimates"), show_default=True)
def main(models: tuple[str, ...], recipes: tuple[str, ...], target: str, samples: int, work: Path) -> None:
    conditions, results = machine(("torch", "onnx")), {}
    shutil.rmtree(work, ignore_errors=True)
    for model in models:
        source = BUILTIN_MODEL
        if model == "slice":
            source = str(work / "checkpoint")
            depth = {"vision_layers": 1, "language_layers": 1}
            synthesize(work / "checkpoint", preset="r1v3-38b", **depth, weights="sparse")
        for recipe in recipes:
            rows = measure(source, recipe, target, samples, model == "nano", work / "bundle")
            results[f"{model}, {recipe}"] = rows
            for row in rows:
                print(model, recipe, row, file=sys.stderr, flush=True)
    shutil.rmtree(work)
    settings = {"target": target, "samples": samples}
    print(write_results("plan-estimates", {"machine": conditions, **settings, "results": results}))


if __name__ == "__main__":
    main()
