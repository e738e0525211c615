"""How many held-out questions r1v-nano answers rightly: `python examples/train_nano/evaluate.py`.

The weights are taken as they ship, rounded to bf16, and computed with in fp32. An answer counts if it is the right
one, word for word.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch

from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.nano.dataset import GeneratedSample, samples
from r1v_export.nano.questions import KINDS
from r1v_export.processing.pipeline_document import describe_pipeline
from r1v_export.processing.tokenizer import Tokenizer
from r1v_export.reference.model import ReferenceEngine, load
from r1v_export.runner.answer import Answer
from r1v_export.runner.engine_runner import EngineRunner
from r1v_export.runner.prompt_encoder import Request
from r1v_export.runner.sampling import Sampling


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder of the model; the shipped one if omitted")
    parser.add_argument("--count", type=int, default=500, help="held-out questions")
    parser.add_argument("--no-think", action="store_true", help="ask for the answer without reasoning")
    parser.add_argument("--mistakes", action="store_true", help="print every wrong answer")
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


def answer_all(model: str | Path | None, questions: Sequence[GeneratedSample], think: bool) -> list[Answer]:
    """Greedy answers of the PyTorch reference."""
    checkpoint = Checkpoint.open(model)
    tokenizer = Tokenizer.from_folder(checkpoint.folder)
    engine = ReferenceEngine(load(checkpoint, torch.float32))
    pipeline = describe_pipeline(checkpoint.spec, tokenizer, checkpoint.generation_config)
    runner = EngineRunner(engine, tokenizer, pipeline)
    requests = [Request.ask(sample.question, sample.image, think=think) for sample in questions]
    return runner.answers(requests, Sampling(max_new_tokens=128))


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    questions = list(samples("eval", arguments.count))
    answers = answer_all(arguments.model, questions, think=not arguments.no_think)
    asked, right, correct_reasoning = Counter(), Counter(), 0
    for sample, answer in zip(questions, answers, strict=True):
        asked[sample.kind] += 1
        right[sample.kind] += answer.text.strip() == sample.answer
        correct_reasoning += answer.reasoning.strip() == sample.reasoning
        if arguments.mistakes and answer.text.strip() != sample.answer:
            print(f"{sample.image.size} {sample.question}\n  right: {sample.reasoning} -> {sample.answer}")
            print(f"  found: {answer.reasoning.strip()} -> {answer.text.strip()}")
    for kind in KINDS:
        print(f"{kind:12} {right[kind]:4} of {asked[kind]:4}  {right[kind] / max(asked[kind], 1):6.1%}")
    print(f"{'all':12} {right.total():4} of {asked.total():4}  {right.total() / asked.total():6.1%}")
    print(f"reasoning correct word for word: {correct_reasoning / asked.total():.1%}")


if __name__ == "__main__":
    main()
