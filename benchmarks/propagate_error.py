"""What a recipe's `propagate_error` is worth: divergence of r1v-nano from float32 where blocks are calibrated on the
outputs of the original blocks before them, and of the quantized ones.

Compared are the next-token distributions of the fake-quantized model over the right replies to held-out questions.
Results: benchmarks/results/<date>-propagate-error.json.

    PYTHONPATH=. python benchmarks/propagate_error.py [--samples 128] [--questions 500]

Of another model (`--model`, such as one of true width and few layers by `r1v-export synth`) one block is in memory at a
time, and the error behind each decoder layer is compared too. Results: <date>-propagate-error-<folder's name>.json.
down_proj of true width takes minutes of its own, for the factorization of a Gram matrix of 3 GB: some rows leave it as
it is.

    r1v-export synth FOLDER --preset r1v1-38b --vision-layers 1 --language-layers 3 --set force_image_size=112
        --set vision_config.image_size=112 --set llm_config.vocab_size=32768
    PYTHONPATH=. python benchmarks/propagate_error.py --model FOLDER --samples 24 --questions 8
        --row "int4 GPTQ, groups of 128, without down_proj" --row "int4 AWQ, groups of 128, without down_proj"
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from divergence import Question, distributions, divergence, held_out, relative_errors, walk
from measure import machine, write_results

from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.config import Matmul
from r1v_export.quantization.apply.blockwise import reference_blocks
from r1v_export.quantization.apply.torch import apply
from r1v_export.quantization.artifact.artifact import Artifact
from r1v_export.quantization.calibration.blockwise_runner import CalibrationOptions
from r1v_export.quantization.calibration.calibrate import calibrate
from r1v_export.quantization.calibration.dataset import CalibrationSet, prepare
from r1v_export.quantization.calibration.matmul_precision import choose_matmul
from r1v_export.quantization.calibration.raw_examples import read_examples
from r1v_export.quantization.recipe import Recipe
from r1v_export.reference.model import load
from r1v_export.runner.bench import peak_memory_bytes

LANGUAGE = ("language_model.*",)
EVERYTHING = ("vision_model.*", "mlp1.*", *LANGUAGE)
ROWS: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "int4 GPTQ, groups of 128": (LANGUAGE, {"algorithm": "gptq", "group_size": 128}),
    "int4 GPTQ, groups of 32": (LANGUAGE, {"algorithm": "gptq", "group_size": 32}),
    "int4 GPTQ, groups of 128, vision and projector too": (EVERYTHING, {"algorithm": "gptq", "group_size": 128}),
    "int4 AWQ, groups of 128": (LANGUAGE, {"algorithm": "awq", "group_size": 128}),
}
NOT_DOWN_PROJ = tuple(f"language_model.*.{name}_proj" for name in ("q", "k", "v", "o", "gate", "up"))
OF_TRUE_WIDTH: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "int4 GPTQ, groups of 128, without down_proj": (NOT_DOWN_PROJ, {"algorithm": "gptq", "group_size": 128}),
    "int4 AWQ, groups of 128, without down_proj": (NOT_DOWN_PROJ, {"algorithm": "awq", "group_size": 128}),
}
MODES = {"original": False, "quantized": True}
"""What the blocks before a block are, while it is calibrated -> `propagate_error`."""


@contextmanager
def calibrated(
    checkpoint: Checkpoint, row: str, propagate_error: bool, samples: CalibrationSet, matmul: Matmul
) -> Iterator[Artifact]:
    """The calibration of a row's recipe, as long as it is used."""
    modules, weights = (ROWS | OF_TRUE_WIDTH)[row]
    scheme = {"weights": {"type": "int4", "granularity": "group", **weights}}
    recipe = Recipe.model_validate(
        {
            "name": "propagate-error",
            "description": row,
            "rules": [{"modules": modules, "scheme": scheme}],
            "propagate_error": propagate_error,
        }
    )
    with tempfile.TemporaryDirectory() as folder:
        calibrate(checkpoint, recipe, samples, Path(folder) / "out", CalibrationOptions(matmul=matmul))
        yield Artifact.open(Path(folder) / "out", checkpoint)


class Whole:
    """Measures a model that is in memory as a whole."""

    def __init__(self, checkpoint: Checkpoint, questions: list[Question]) -> None:
        self.checkpoint, self.questions = checkpoint, questions
        self.original = distributions(load(checkpoint), questions)

    def measure(self, artifact: Artifact) -> dict[str, Any]:
        model = load(self.checkpoint)
        apply(model, dict(artifact.linears()), {name: read() for name, read in artifact.overrides.items()})
        return divergence(self.original, distributions(model, self.questions))


class Blockwise:
    """Measures a model of which one block is in memory at a time."""

    def __init__(self, checkpoint: Checkpoint, questions: list[Question]) -> None:
        self.checkpoint, self.questions = checkpoint, questions
        self.original = walk(reference_blocks(checkpoint), questions)

    def measure(self, artifact: Artifact) -> dict[str, Any]:
        found = walk(reference_blocks(self.checkpoint, artifact), self.questions)
        errors = relative_errors(self.original, found)
        return divergence(self.original.distributions, found.distributions) | {"relative_error_by_layer": errors}


@click.command()
@click.option("--model", type=click.Path(path_type=Path, exists=True), help="Folder; r1v-nano if omitted.")
@click.option(
    "--row", "rows", multiple=True, type=click.Choice([*ROWS, *OF_TRUE_WIDTH]), help="As of r1v-nano if omitted."
)
@click.option("--samples", "sample_count", default=128, show_default=True)
@click.option("--questions", "count", default=500, show_default=True)
def main(model: Path | None, rows: tuple[str, ...], sample_count: int, count: int) -> None:
    conditions, checkpoint = machine(("torch",)), Checkpoint.open(model and str(model))
    questions, samples = held_out(checkpoint, count), prepare(read_examples(None, sample_count), checkpoint)
    matmul = choose_matmul("auto", checkpoint, "cpu")
    measured = (Blockwise if model else Whole)(checkpoint, questions)
    results: dict[str, dict[str, Any]] = {row: {} for row in rows or ROWS}
    for row in results:
        for mode, propagate_error in MODES.items():
            started, cpu_s = time.perf_counter(), time.process_time()
            with calibrated(checkpoint, row, propagate_error, samples, matmul) as artifact:
                times = {"seconds": time.perf_counter() - started, "cpu_s": time.process_time() - cpu_s}
                results[row][mode] = measured.measure(artifact) | times
            print(f"  {row:52} {mode:10} {results[row][mode]}", file=sys.stderr, flush=True)
    content = {
        "machine": conditions,
        "model": model.name if model else "r1v-nano",
        "matmul": matmul,
        "samples": sample_count,
        "sample_tokens": sum(len(sample.token_ids) for sample in samples.samples),
        "questions": count,
        "peak_memory_bytes": peak_memory_bytes(),
        "results": results,
    }
    print(write_results(f"propagate-error-{model.name}" if model else "propagate-error", content))


if __name__ == "__main__":
    main()
