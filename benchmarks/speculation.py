"""Speculation by prompt lookup: tokens a second with drafts over without, and how many drafts are right.

One request at a time, ONNX Runtime on the CPU, both ways in turns on the same engine; the answers have to be equal.

* `answers`: r1v-nano's to held-out questions of its data set, reasoning included (some 35 tokens each)
* `long`: r1v-nano goes on for 400 tokens, and repeats itself
* `letters`: Qwen2-0.5B's shape with random weights, 200 letters drawn at temperature 1: text that does not repeat
* `loop`: the same, greedy, which soon repeats what it said

    python benchmarks/speculation.py [--work /tmp/r1v-speculation] [--repeats 5]
"""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from measure import interleaved, machine, ratio, write_results
from serving_model import Model

from r1v_export.generation import Sampling
from r1v_export.nano import dataset
from r1v_export.runner.base import BaseRunner
from r1v_export.runner.batching.engine_batch import EngineBatch
from r1v_export.runner.batching.speculation import DRAFT_TOKENS
from r1v_export.runner.open_runner import open_runner
from r1v_export.runner.prompt_encoder import Request

WITH, WITHOUT = "with drafts", "without"


class Turns:
    """The same requests with and without drafts, each in one batch for all turns, as a server has it."""

    def __init__(self, runner: BaseRunner, requests: Sequence[Request], sampling: Sampling) -> None:
        self.runner, self.requests, self.sampling = runner, requests, sampling
        self.batches: dict[str, EngineBatch] = {
            WITH: runner.open_batch(1, draft_tokens=DRAFT_TOKENS),  # type: ignore[dict-item]
            WITHOUT: runner.open_batch(1),  # type: ignore[dict-item]
        }
        self.answers: dict[str, list[tuple[int, ...]]] = {}

    def turn(self, name: str) -> dict[str, float]:
        """Answer all requests one after the other."""
        encoder, never = self.runner.image_encoder(), threading.Event()
        tokens, decode_ms, answers = 0, 0.0, []
        for request in self.requests:
            for event in self.runner.drive(self.batches[name], encoder, [request], [self.sampling], never):
                if event.answer is not None:
                    answers.append(event.answer.token_ids)
                    tokens += event.answer.timings.decode_steps
                    decode_ms += event.answer.timings.decode_ms
        if answers != self.answers.setdefault(name, answers) or answers != next(iter(self.answers.values())):
            raise click.ClickException("Answers with drafts are not those without.")
        return {"tokens_per_s": tokens / decode_ms * 1000}

    def compare(self, repeats: int) -> dict[str, Any]:
        """Ratio of the speeds, and what became of the drafts."""
        results = interleaved({name: lambda name=name: self.turn(name) for name in self.batches}, repeats)  # type: ignore[misc]
        counters = self.batches[WITH].counters
        steps = sum(counters.rows_per_step.values())
        return {
            "speed_ratio": ratio(results, WITH, WITHOUT, "tokens_per_s"),
            "draft_tokens": counters.draft_tokens,
            "accepted_tokens": counters.accepted_tokens,
            "accepted": round(counters.accepted_tokens / max(1, counters.draft_tokens), 3),
            "tokens_per_step": round((steps + counters.accepted_tokens) / steps, 3),
            "requests": len(self.requests),
            "turns": results,
        }


@click.command()
@click.option("--work", type=click.Path(path_type=Path), default=Path("/tmp/r1v-speculation"), show_default=True)
@click.option("--repeats", default=5, show_default=True)
def main(work: Path, repeats: int) -> None:
    conditions, results = machine(("onnxruntime", "numpy")), {}
    model = Model(work)
    model.prepare("fp32", "int4")
    samples = [*dataset.samples("eval", 40)]
    questions = [Request.ask(sample.question, sample.image) for sample in samples]
    letters = Request.ask("Say letters.")
    for precision in ("fp32", "int4"):
        nano = work / f"nano-{precision}"
        build = ("build", "--precision", precision, "--no-parity", "-o", str(nano))
        subprocess.run([sys.executable, "-m", "r1v_export.cli.main", *build], check=True, capture_output=True)
        small, large = open_runner(nano), open_runner(model.bundle(precision))
        endless = Sampling(max_new_tokens=400, ignore_eos=True)
        cases = {
            "answers": Turns(small, questions, Sampling(max_new_tokens=96)),
            "long": Turns(small, questions[:4], endless),
            "letters": Turns(large, [letters], Sampling(max_new_tokens=200, ignore_eos=True, temperature=1.0)),
            "loop": Turns(large, [letters], Sampling(max_new_tokens=200, ignore_eos=True)),
        }
        results[precision] = {}
        for name, case in cases.items():
            print(f"{precision} {name}", file=sys.stderr)
            results[precision][name] = case.compare(repeats)
    print(write_results("speculation", {"machine": conditions, "repeats": repeats, "results": results}))


if __name__ == "__main__":
    main()
