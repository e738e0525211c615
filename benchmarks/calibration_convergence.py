"""Whether a calibration could stop once its statistics stop changing: when a rule would stop on r1v-nano, block by
block, what it would miss, and what fewer samples cost, those of a quick calibration among them.

Statistics of every input are taken sample by sample: largest magnitude (static scales) and second moments (the diagonal
of the Gram matrices of AWQ and GPTQ). The rule compares them after every batch: it stops where no input's largest
magnitude, and no second moments as a vector, have changed by more than a tolerance over the last samples. A block hands
the next one its outputs, so that a block can take no more samples than the one before it.

    PYTHONPATH=. python benchmarks/calibration_convergence.py [--samples 128] [--questions 200]
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import torch
from divergence import distributions, divergence, held_out
from measure import machine, write_results
from torch import Tensor

from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.pipeline.calibration import fake_quantize
from r1v_export.pipeline.effort import SAMPLES
from r1v_export.quantization.artifact.artifact import Artifact
from r1v_export.quantization.calibration.blocks import blocks, materialize
from r1v_export.quantization.calibration.calibrate import calibrate
from r1v_export.quantization.calibration.dataset import CalibrationSample, CalibrationSet, prepare
from r1v_export.quantization.calibration.raw_examples import read_examples
from r1v_export.quantization.recipe import load as load_recipe
from r1v_export.quantization.statistics.collector import collect_statistics
from r1v_export.reference.model import load

BATCH, WINDOW = 8, 16
TOLERANCES = (0.05, 0.02, 0.01)
RECIPES = ("fp8", "int8-smoothquant", "int4-gptq")
COUNTS = (8, 16, 32, 64)


@dataclass
class Course:
    """Statistics of one input of a block over the samples: of the first 1, 2, ... of them."""

    block: str
    absmax: list[float]
    moments: list[Tensor]

    def change(self, first: int, then: int) -> float:
        """By how much the statistics of `first` samples differ from those of `then`, relative."""
        was, now = self.moments[first - 1], self.moments[then - 1]
        moved = float((was - now).norm() / now.norm().clamp(min=1e-30))
        return max(1 - self.absmax[first - 1] / self.absmax[then - 1], moved)


def courses(checkpoint: Checkpoint, samples: Sequence[CalibrationSample]) -> list[Course]:
    """Of every input of every linear."""
    found, given = [], [None] * len(samples)
    for block in blocks(checkpoint.spec):
        module = materialize(block, checkpoint, torch.float32, torch.device("cpu"))
        inputs = {block.module_name(group.linears[0]): group for group in block.groups}
        own = {group.name: Course(block.name, [], []) for group in block.groups}
        sums: dict[str, Tensor] = defaultdict(lambda: torch.zeros(()))
        rows: dict[str, int] = defaultdict(int)
        with torch.no_grad():
            for index, sample in enumerate(samples):
                with collect_statistics(module, inputs, {group.name for group in block.groups}, {}) as collector:
                    given[index] = block.forward(module, sample, given[index])
                collected = collector.statistics()
                for name, course in own.items():
                    sums[name] = sums[name] + collected.grams[name].diagonal().double()
                    rows[name] += int(collected.activations[name].rows)
                    before = course.absmax[-1] if course.absmax else 0.0
                    course.absmax.append(max(before, collected.activations[name].absmax))
                    course.moments.append(sums[name] / max(rows[name], 1))
        found += own.values()
    return found


def stops(found: Sequence[Course], total: int, tolerance: float) -> dict[str, Any]:
    """After how many samples the rule stops in each block by itself, and what stopping at the first blocks would
    miss in the others."""
    by_block: dict[str, list[Course]] = defaultdict(list)
    for course in found:
        by_block[course.block].append(course)

    def stop_of(own: Sequence[Course]) -> int:
        for count in range(2 * BATCH, total + 1, BATCH):
            if count > WINDOW and all(course.change(count - WINDOW, count) <= tolerance for course in own):
                return count
        return total

    alone = {block: stop_of(own) for block, own in by_block.items()}
    first = next(iter(alone.values()))
    chain, walked = total, {}
    for block in by_block:
        chain = min(chain, alone[block])
        walked[block] = chain
    missed = [course.change(walked[course.block], total) for course in found]
    return {
        "alone": alone,
        "first_block": first,
        "most": max(alone.values()),
        "walked_last": chain,
        "missed_by_walk": {"median": statistics.median(missed), "largest": max(missed)},
        "inputs_that_change_more": sum(change > tolerance for change in missed) / len(missed),
    }


def scale_differences(whole: Artifact, part: Artifact) -> dict[str, float]:
    """Of static input scales, by how much those of fewer samples are smaller."""
    pairs = [(a.input_scale, b.input_scale) for (_, a), (_, b) in zip(whole.linears(), part.linears(), strict=True)]
    smaller = [1 - float(fewer) / float(all_) for all_, fewer in pairs if all_ is not None and fewer is not None]
    return {"median": statistics.median(smaller), "largest": max(smaller)} if smaller else {}


@click.command()
@click.option("--samples", "total", default=128, show_default=True)
@click.option("--questions", default=200, show_default=True)
def main(total: int, questions: int) -> None:
    conditions, checkpoint = machine(("torch",)), Checkpoint.open(None)
    whole = prepare(read_examples(None, total), checkpoint)
    by_length = sorted(whole.samples, key=lambda sample: len(sample.token_ids))
    orders = {"as they come": whole.samples, "shortest first": tuple(by_length)}
    rule = {}
    for order, samples in orders.items():
        found = courses(checkpoint, samples)
        rule[order] = {str(tolerance): stops(found, total, tolerance) for tolerance in TOLERANCES}
        print(f"  {order}: {rule[order]}", file=sys.stderr, flush=True)
    chosen = {str(count): whole.samples[:count] for count in (total, *COUNTS)}
    chosen["quick"] = tuple(by_length[: SAMPLES["quick"]])
    asked = held_out(checkpoint, questions)
    original = distributions(load(checkpoint), asked)
    fewer: dict[str, dict[str, Any]] = defaultdict(dict)
    for recipe in RECIPES:
        with tempfile.TemporaryDirectory() as folder:
            artifacts: dict[str, Artifact] = {}
            for name, samples in chosen.items():
                calibration = replace(whole, samples=samples, total=len(samples))
                artifacts[name] = calibrated(checkpoint, recipe, calibration, Path(folder) / name)
                model = load(checkpoint)
                fake_quantize(model, artifacts[name])
                fewer[recipe][name] = {
                    **divergence(original, distributions(model, asked)),
                    "input_scales_smaller": scale_differences(artifacts[str(total)], artifacts[name]),
                }
                print(f"  {recipe:18} {name:5} {fewer[recipe][name]}", file=sys.stderr, flush=True)
    content = {"machine": conditions, "samples": total, "questions": questions, "batch": BATCH, "window": WINDOW}
    print(write_results("calibration-convergence", content | {"rule": rule, "fewer_samples": fewer}))


def calibrated(checkpoint: Checkpoint, recipe: str, calibration: CalibrationSet, out: Path) -> Artifact:
    calibrate(checkpoint, load_recipe(recipe), calibration, out)
    return Artifact.open(out, checkpoint)


if __name__ == "__main__":
    main()
