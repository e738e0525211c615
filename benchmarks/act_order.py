"""What the order of GPTQ's columns is worth: divergence of r1v-nano from float32 for each `act_order` of a recipe.

128 generated samples go through the model once, and every way of quantizing takes the same statistics. Compared are the
next-token distributions of the fake-quantized model over the right replies to held-out questions. Results:
benchmarks/results/<date>-act-order.json, the table of docs/quantization.md.

    PYTHONPATH=. python benchmarks/act_order.py [--questions 500]
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
from divergence import distributions, divergence, held_out
from measure import machine, write_results
from torch import Tensor

from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.quantization.algorithms.quantize_block import quantize_block
from r1v_export.quantization.apply.torch import apply
from r1v_export.quantization.calibration.blocks import Block
from r1v_export.quantization.calibration.blockwise_runner import DEFAULT_OPTIONS, BlockwiseRunner
from r1v_export.quantization.calibration.calibrate import make_plan
from r1v_export.quantization.calibration.dataset import prepare
from r1v_export.quantization.calibration.raw_examples import read_examples
from r1v_export.quantization.quantized_linear import QuantizedLinear
from r1v_export.quantization.recipe import Recipe
from r1v_export.quantization.statistics.activation_statistics import BlockStatistics
from r1v_export.reference.model import load

SAMPLES = 128
LANGUAGE = ("language_model.*",)
EVERYTHING = ("vision_model.*", "mlp1.*", *LANGUAGE)
ROWS: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "int4, groups of 128": (LANGUAGE, {"type": "int4", "group_size": 128}),
    "int4, groups of 64": (LANGUAGE, {"type": "int4", "group_size": 64}),
    "int4, groups of 32": (LANGUAGE, {"type": "int4", "group_size": 32}),
    "uint4, groups of 128": (LANGUAGE, {"type": "uint4", "group_size": 128}),
    "int4, groups of 128, vision and projector too": (EVERYTHING, {"type": "int4", "group_size": 128}),
}
ORDERS = ("none", "static", "group")

Linears = dict[str, QuantizedLinear]


def recipe(modules: tuple[str, ...], weights: dict[str, Any]) -> Recipe:
    scheme = {"weights": {"granularity": "group", "algorithm": "gptq", **weights}}
    rules = [{"modules": modules, "scheme": scheme}]
    return Recipe.model_validate({"name": "act-order", "description": "One order of columns.", "rules": rules})


def output_errors(
    block: Block, linears: Linears, tensors: Mapping[str, Tensor], collected: BlockStatistics
) -> list[float]:
    """Relative error of each linear's own outputs over all calibration tokens: what GPTQ makes small."""
    errors = []
    for group in block.groups:
        for name in group.linears:
            if name in linears:
                gram, weight = collected.grams[group.name], tensors[f"{name}.weight"]
                change = linears[name].dequantize() - weight
                energy, error = ((each @ gram * each).sum() for each in (weight, change))
                errors.append(float((error / energy).sqrt()))
    return errors


def quantized(checkpoint: Checkpoint) -> tuple[dict[tuple[str, str], Linears], dict[tuple[str, str], float]]:
    """(row, order) -> its linears, all from the same statistics, and the mean of their outputs' relative errors."""
    errors: dict[tuple[str, str], list[float]] = defaultdict(list)
    plans = {
        (name, order): make_plan(checkpoint, recipe(modules, weights | {"act_order": order}))
        for name, (modules, weights) in ROWS.items()
        for order in ORDERS
    }
    found: dict[tuple[str, str], Linears] = defaultdict(dict)

    def quantize(block: Block, tensors: Mapping[str, Tensor], collected: BlockStatistics) -> None:
        for key, plan in plans.items():
            if plan.is_quantized(block):
                made = quantize_block(block.groups, plan.schemes, tensors, collected, plan.recipe.observer)
                found[key] |= made.linears
                errors[key] += output_errors(block, made.linears, tensors, collected)

    widest = make_plan(checkpoint, recipe(EVERYTHING, {"type": "int4", "group_size": 128}))
    samples = prepare(read_examples(None, SAMPLES), checkpoint).samples
    with tempfile.TemporaryDirectory() as folder:
        runner = BlockwiseRunner(checkpoint, widest, samples, Path(folder), DEFAULT_OPTIONS)
        runner.run(0, quantize, lambda block: print(f"  {block.name}", file=sys.stderr, flush=True), rounds=True)
    return found, {key: statistics.mean(own) for key, own in errors.items()}


@click.command()
@click.option("--questions", "count", default=500, show_default=True)
def main(count: int) -> None:
    conditions = machine(("torch",))
    checkpoint = Checkpoint.open(None)
    (linears, errors), questions = quantized(checkpoint), held_out(checkpoint, count)
    original = distributions(load(checkpoint), questions)
    results: dict[str, dict[str, dict[str, float]]] = defaultdict(dict)
    for (name, order), own in linears.items():
        model = load(checkpoint)
        apply(model, own, {})
        found = divergence(original, distributions(model, questions))
        results[name][order] = {"output_error": errors[name, order], **found}
        print(f"  {name:48} {order:8} {results[name][order]}", file=sys.stderr, flush=True)
    content = {"machine": conditions, "questions": count, "samples": SAMPLES, "results": results}
    print(write_results("act-order", content))


if __name__ == "__main__":
    main()
