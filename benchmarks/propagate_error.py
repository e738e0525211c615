"""What a recipe's `propagate_error` is worth: divergence of r1v-nano from float32 where blocks are calibrated on the
outputs of the original blocks before them, and of the quantized ones.

Compared are the next-token distributions of the fake-quantized model over the right replies to held-out questions.
Results: benchmarks/results/<date>-propagate-error.json.

    PYTHONPATH=. python benchmarks/propagate_error.py [--samples 128] [--questions 500]
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import click
from divergence import distributions, divergence, held_out
from measure import machine, write_results

from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.quantization.apply.torch import apply
from r1v_export.quantization.artifact.artifact import Artifact
from r1v_export.quantization.calibration.calibrate import calibrate
from r1v_export.quantization.calibration.dataset import CalibrationSet, prepare
from r1v_export.quantization.calibration.raw_examples import read_examples
from r1v_export.quantization.recipe import Recipe
from r1v_export.reference.model import Model, load

LANGUAGE = ("language_model.*",)
EVERYTHING = ("vision_model.*", "mlp1.*", *LANGUAGE)
ROWS: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "int4 GPTQ, groups of 128": (LANGUAGE, {"algorithm": "gptq", "group_size": 128}),
    "int4 GPTQ, groups of 32": (LANGUAGE, {"algorithm": "gptq", "group_size": 32}),
    "int4 GPTQ, groups of 128, vision and projector too": (EVERYTHING, {"algorithm": "gptq", "group_size": 128}),
    "int4 AWQ, groups of 128": (LANGUAGE, {"algorithm": "awq", "group_size": 128}),
}
MODES = {"original": False, "quantized": True}
"""What the blocks before a block are, while it is calibrated -> `propagate_error`."""


def quantized(checkpoint: Checkpoint, row: str, propagate_error: bool, samples: CalibrationSet) -> Model:
    """The model fake-quantized by a row's recipe."""
    modules, weights = ROWS[row]
    scheme = {"weights": {"type": "int4", "granularity": "group", **weights}}
    recipe = Recipe.model_validate(
        {
            "name": "propagate-error",
            "description": row,
            "rules": [{"modules": modules, "scheme": scheme}],
            "propagate_error": propagate_error,
        }
    )
    model = load(checkpoint)
    with tempfile.TemporaryDirectory() as folder:
        calibrate(checkpoint, recipe, samples, Path(folder) / "out")
        artifact = Artifact.open(Path(folder) / "out", checkpoint)
        apply(model, dict(artifact.linears()), {name: read() for name, read in artifact.overrides.items()})
    return model


@click.command()
@click.option("--samples", "sample_count", default=128, show_default=True)
@click.option("--questions", "count", default=500, show_default=True)
def main(sample_count: int, count: int) -> None:
    conditions, checkpoint = machine(("torch",)), Checkpoint.open(None)
    questions, samples = held_out(checkpoint, count), prepare(read_examples(None, sample_count), checkpoint)
    original = distributions(load(checkpoint), questions)
    results: dict[str, dict[str, Any]] = {row: {} for row in ROWS}
    for row in ROWS:
        for mode, propagate_error in MODES.items():
            model = quantized(checkpoint, row, propagate_error, samples)
            results[row][mode] = divergence(original, distributions(model, questions))
            print(f"  {row:52} {mode:10} {results[row][mode]}", file=sys.stderr, flush=True)
    content = {"machine": conditions, "samples": sample_count, "questions": count, "results": results}
    print(write_results("propagate-error", content))


if __name__ == "__main__":
    main()
