"""What each way of quantizing costs r1v-nano: right answers, divergence from float32, size of the bundle.

Every row is a bundle as `r1v-export build` makes it, calibrated on 128 generated samples. Its ONNX Runtime engine
answers the held-out questions greedily; the divergence is that of its fake-quantized model, which the parity gate
compares the engine with, over the right replies to the same questions.

    python benchmarks/quantization_accuracy.py [--questions 500] [--row fp8 --row int4-gptq ...]
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import click
from divergence import distributions, divergence, held_out
from measure import machine, write_results

from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.config import BuildConfig, ParityConfig
from r1v_export.nano import dataset
from r1v_export.pipeline.build import build
from r1v_export.pipeline.calibration import fake_quantize, open_artifact
from r1v_export.reference.model import load
from r1v_export.runner.open_runner import open_runner
from r1v_export.runner.prompt_encoder import Request
from r1v_export.runner.sampling import Sampling

ROWS = {
    "fp32": {"precision": "fp32"},
    "fp8": {"precision": "fp8"},
    "int8": {"precision": "int8"},
    "w4a8": {"precision": "int4", "recipe": "w4a8"},
    "int4-rtn": {"precision": "int4", "recipe": "int4-rtn"},
    "int4-awq": {"precision": "int4", "recipe": "int4-awq"},
    "int4-gptq": {"precision": "int4", "recipe": "int4-gptq"},
}


def right_answers(bundle: Path, count: int) -> int:
    asked = list(dataset.samples("eval", count))
    requests = [Request.ask(sample.question, sample.image) for sample in asked]
    answers = open_runner(bundle).answers(requests, Sampling(max_new_tokens=128))
    return sum(answer.text.strip() == sample.answer for answer, sample in zip(answers, asked, strict=True))


@click.command()
@click.option("--questions", "count", default=500, show_default=True)
@click.option("--row", "rows", multiple=True, type=click.Choice(list(ROWS)), default=tuple(ROWS))
@click.option("--work", type=click.Path(path_type=Path), default=Path("/tmp/r1v-quantization"), show_default=True)
def main(count: int, rows: tuple[str, ...], work: Path) -> None:
    conditions = machine(("torch", "onnxruntime"))
    checkpoint = Checkpoint.open(None)
    questions = held_out(checkpoint, count)
    original = distributions(load(checkpoint), questions)
    results: dict[str, dict[str, Any]] = {}
    for row in rows:
        shutil.rmtree(work / row, ignore_errors=True)
        config = BuildConfig(parity=ParityConfig(enabled=False), **ROWS[row])
        built = build(config, work / row)
        model, artifact = load(checkpoint), open_artifact(built.out, checkpoint)
        if artifact is not None:
            fake_quantize(model, artifact)
        graphs = sum(path.stat().st_size for path in (built.out / "graphs").iterdir())
        results[row] = {
            "right": right_answers(built.out, count),
            **divergence(original, distributions(model, questions)),
            "graphs_mb": round(graphs / 1e6, 2),
            "bundle_mb": round(built.size_bytes / 1e6, 2),
        }
        print(f"  {row:12} {results[row]}", file=sys.stderr, flush=True)
    print(write_results("quantization-accuracy", {"machine": conditions, "questions": count, "results": results}))


if __name__ == "__main__":
    main()
