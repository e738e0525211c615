"""Which of our own answers depend on how float32 sums are ordered: inputs between two levels round to either.

    PYTHONPATH=. .venv/bin/python benchmarks/rounding_edges.py --work /tmp/readers/edges

Builds r1v-nano in formats with 8-bit inputs and answers held-out questions twice with this package's reader of each:
as it is, and with every input of every linear off by a random millionth of itself, as the sums of another runtime are.
Answers that differ then are no fault of a reader. Results: benchmarks/results/<date>-rounding-edges.json.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
from measure import machine, write_results
from torch import Tensor, nn
from vllm_cases import CASES, CT, Case
from vllm_oracle import folder_of, our_answers, our_runner

from r1v_export.nano.dataset import GeneratedSample, samples
from r1v_export.reference.model import ReferenceEngine
from r1v_export.runner.engine_runner import EngineRunner

RECIPES = ("fp8-tensor", "int8-smoothquant", "fp8-rowwise")
NOISE = 1e-6


def disturb(engine: ReferenceEngine) -> None:
    """Let every linear's input be off by `NOISE`, before it is quantized."""
    generator = torch.Generator().manual_seed(0)

    def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (inputs[0] * (1 + NOISE * torch.randn(inputs[0].shape, generator=generator)),)

    for module in engine.model.modules():
        if isinstance(module, nn.Linear):
            module.register_forward_pre_hook(hook, prepend=True)


def answers(case: Case, work: Path, asked: list[GeneratedSample], disturbed: bool) -> list[Any]:
    runner = our_runner(case, work)
    assert isinstance(runner, EngineRunner)
    assert isinstance(runner.engine, ReferenceEngine)
    if disturbed:
        disturb(runner.engine)
    return [answer["tokens"] for answer in our_answers(runner, asked)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for bundles")
    parser.add_argument("--questions", type=int, default=100)
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    asked = list(samples("eval", arguments.questions))
    results = {}
    for recipe in RECIPES:
        case = next(case for case in CASES if (case.target, case.precision, case.note) == (CT, recipe, ""))
        folder_of(case, arguments.work)
        pairs = zip(*(answers(case, arguments.work, asked, disturbed) for disturbed in (False, True)), strict=True)
        results[recipe] = [index for index, (calm, moved) in enumerate(pairs) if calm != moved]
        print(f"  {recipe:20} {results[recipe]}", file=sys.stderr, flush=True)
    content = {"machine": machine(("torch",)), "questions": len(asked), "noise": NOISE, "changed": results}
    print(write_results("rounding-edges", content))


if __name__ == "__main__":
    main()
