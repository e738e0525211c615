"""A real llama.cpp reads what `--target gguf` writes: does it load, are its tokens ours?

    PYTHONPATH=. .venv/bin/python benchmarks/llama_cpp_oracle.py --environment /tmp/llama --work /tmp/oracle

Makes llama.cpp's environment where there is none (34 MB, outside the lock), builds r1v-nano in every type, lets
llama_cpp_reader.py answer questions with each, and compares greedy tokens and the prompt's tokens with this package's
own reader of the same files. A case that is done is not run again; `--only NAME` runs some; the other rows stay.
Results: benchmarks/results/<date>-llama-cpp-oracle.json, rows of benchmarks/reader_matrix.py.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from itertools import islice, repeat
from pathlib import Path
from typing import Any

import torch
from environments import environment_of
from measure import machine, newest_results, write_results
from PIL import Image
from safetensors.torch import save_file

import r1v_export
from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.checkpoint.config import read_configuration
from r1v_export.checkpoint.names import expected_tensors
from r1v_export.generation import Sampling
from r1v_export.nano.dataset import samples
from r1v_export.processing.preprocess import pixel_values
from r1v_export.processing.tokenizer import Tokenizer
from r1v_export.quantization.recipe import load
from r1v_export.runner.prompt_encoder import Request

VERSION = "2026.10.11549"
PACKAGE = f"xllamacpp=={VERSION}"
MAX_TOKENS = 96
TILE = 112
EXAMPLES = Path(__file__).parents[1] / "examples/images"


@dataclass(frozen=True)
class Question:
    """Something to ask."""

    image: Image.Image
    text: str
    answer: str


@dataclass(frozen=True)
class Case:
    """A build and what is asked."""

    name: str
    precision: str
    recipe: str | None = None
    """Of a shipped recipe; "int4-32" and "uint4-32" are round-to-nearest in groups of 32."""
    types: str = ""
    """The block of gguf in the build file, where there is one."""
    padded: bool = False
    """Of `padded_nano` instead of r1v-nano."""
    asked: str = "grids"
    """Held-out images whose size is that of a grid of tiles, which both cut alike; "others": of other shapes;
    "examples": those of examples/images."""


CASES = (
    Case("r1v-nano fp32", "fp32"),
    Case("r1v-nano fp16", "fp16"),
    Case("r1v-nano fp16, images of examples/", "fp16", asked="examples"),
    Case("r1v-nano fp16, images of 128x96 and 96x128", "fp16", asked="others"),
    Case("r1v-nano bf16", "bf16"),
    Case("r1v-nano int8-smoothquant (Q8_0)", "int8", "int8-smoothquant"),
    Case("r1v-nano int4-gptq (Q4_0)", "int4", "int4-gptq"),
    Case("r1v-nano int4-awq (Q4_0)", "int4", "int4-awq"),
    Case("r1v-nano int4-rtn, groups of 32 (Q4_0)", "int4", "int4-32"),
    Case("r1v-nano uint4-rtn, groups of 32 (Q4_1)", "int4", "uint4-32"),
    Case("r1v-nano Q4_K_M", "fp16", types="model: Q4_K_M"),
    Case("r1v-nano Q8_0, mmproj Q8_0", "fp16", types="model: Q8_0, mmproj: Q8_0"),
    Case("r1v-nano int4-awq (Q4_0), all else Q4_K_M", "int4", "int4-awq", types="model: Q4_K_M"),
    Case("r1v-nano with rows of 384 and 544, Q4_K_M (Q5_0, Q8_0)", "fp16", types="model: Q4_K_M", padded=True),
)


def make_environment(folder: Path) -> Path:
    """The Python of llama.cpp's environment, which is made if it is not there."""
    return environment_of(folder, ("install", "-q", PACKAGE))


def recipe_of(name: str, work: Path) -> str:
    """A recipe's name, or the file that it is written to."""
    if not name.endswith("-32"):
        return name
    text = load("int4-rtn").to_yaml().replace("group_size: 128", "group_size: 32")
    path = work / f"{name}.yaml"
    path.write_text(text.replace("type: int4", f"type: {name.removesuffix('-32')}"), encoding="utf-8")
    return str(path)


def padded_nano(folder: Path) -> Path:
    """r1v-nano with zeros around its language model's weights: the same function in rows that 256 does not divide."""
    nano = Checkpoint.open()
    shutil.copytree(nano.folder, folder, dirs_exist_ok=True)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    # Root mean squares of 384 channels, 128 of them 0, are smaller.
    share = config["llm_config"]["hidden_size"] / 384
    config["llm_config"] |= {"hidden_size": 384, "num_attention_heads": 6, "num_key_value_heads": 3}
    config["llm_config"] |= {"intermediate_size": 544, "rms_norm_eps": config["llm_config"]["rms_norm_eps"] * share}
    for part in (config, config["llm_config"], config["vision_config"]):
        part["torch_dtype"] = "float32"
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    spec = read_configuration(folder, stores_lm_head=True, stored_dtype=torch.float32).spec
    tensors = {}
    for name, shape in expected_tensors(spec).items():
        tensor = nano.read(name).float()
        added = [(0, size - old) for size, old in zip(shape, tensor.shape, strict=True)]
        tensors[name] = torch.nn.functional.pad(tensor, [side for axis in reversed(added) for side in axis])
        if name.startswith("language_model.") and name.endswith("norm.weight"):
            tensors[name] *= share**0.5
    save_file(tensors, folder / "model.safetensors")
    return folder


def build_file(types: str, work: Path) -> Path:
    """A build file with such a block of gguf."""
    path = work / "build.yaml"
    path.write_text(f"targets: {{gguf: {{{types}}}}}\n", encoding="utf-8")
    return path


def bundle_of(case: Case, work: Path) -> Path:
    """The bundle; built by the command line, as a user would, where it is not there."""
    name = " ".join(filter(None, (case.recipe or case.precision, case.types, case.padded and "padded")))
    bundle = work / "bundles" / re.sub("[^A-Za-z0-9_]+", "-", name)
    if not (bundle / "manifest.json").exists():
        model = str(padded_nano(work / "padded-nano")) if case.padded else "r1v-nano"
        words = ["build", model, "--target", "gguf", "--precision", case.precision, "-o", str(bundle)]
        words += ["--recipe", recipe_of(case.recipe, work)] if case.recipe else []
        words += ["--config", str(build_file(case.types, work))] if case.types else []
        command = [sys.executable, "-m", "r1v_export.cli.main", *words, "--no-parity"]
        subprocess.run(command, check=True, stdout=sys.stderr)
    return bundle


def questions(asked: str, count: int) -> list[Question]:
    if asked == "examples":
        rows = map(json.loads, (EXAMPLES / "questions.jsonl").read_text(encoding="utf-8").splitlines())
        return [Question(Image.open(EXAMPLES / row["image"]), row["question"], row["answer"]) for row in rows]
    held_out = (Question(each.image, each.question, each.answer) for each in samples("eval", 10 * count))
    return list(islice((q for q in held_out if is_grid(q.image) == (asked == "grids")), count))


def is_grid(image: Image.Image) -> bool:
    return all(side % TILE == 0 for side in image.size)


def ours(bundle: Path, asked: list[Question]) -> list[dict[str, Any]]:
    """Answers of this package's own reader."""
    runner = r1v_export.open_runner(bundle, target="gguf")
    sampling = Sampling(temperature=0.0, max_new_tokens=MAX_TOKENS)
    requests = [Request.ask(question.text, question.image) for question in asked]
    found = []
    for request, answer, question in zip(requests, runner.answers(requests, sampling), asked, strict=True):
        _, tiles = pixel_values(request.images, runner.tiling, runner.image_policy)
        ids = runner.encode(request.turns, tiles, request.think)
        right = answer.text.strip() == question.answer
        found.append({"tokens": list(answer.token_ids), "prompt": ids, "right": right})
    return found


def theirs(python: Path, bundle: Path, asked: list[Question], work: Path) -> dict[str, Any]:
    """Answers of llama.cpp."""
    engine, rows = bundle / "engines/gguf", []
    for index, question in enumerate(asked):
        image = work / "images" / f"{index}.png"
        image.parent.mkdir(parents=True, exist_ok=True)
        question.image.save(image)
        after = f"\n{question.text}<|im_end|>\n<|im_start|>assistant\n<think>\n"
        rows.append({"before": "<|im_start|>user\n", "after": after, "image": str(image)})
    files = {"model": str(engine / "model.gguf"), "mmproj": str(engine / "mmproj.gguf")}
    job = files | {"max_tokens": MAX_TOKENS, "questions": rows}
    (work / "job.json").write_text(json.dumps(job), encoding="utf-8")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    reader = Path(__file__).parent / "llama_cpp_reader.py"
    with (work / "reader.log").open("w", encoding="utf-8") as log:
        command = ["nice", "-n", "10", python, reader, work / "job.json", work / "answers.json"]
        subprocess.run(command, env=environment, stdout=log, stderr=subprocess.STDOUT, check=True)
    return json.loads((work / "answers.json").read_text(encoding="utf-8"))


def row_of(case: Case, python: Path, work: Path, count: int) -> dict[str, Any]:
    """A row of the matrix."""
    bundle, asked = bundle_of(case, work), questions(case.asked, count)
    row = {
        "artifact": case.name,
        "target": "gguf",
        "precision": ", ".join(filter(None, (case.recipe or case.precision, case.types))),
        "reader": "llama.cpp",
        "version": f"xllamacpp {VERSION}",
    }
    found = theirs(python, bundle, asked, work)
    if "error" in found:
        return row | {"loads": False, "computes": False, "equal": None, "of": None, "error": found["error"][:400]}
    tokenizer = Tokenizer.from_folder(bundle)
    pairs = list(zip(ours(bundle, asked), found["answers"], strict=True))
    return row | {
        "loads": True,
        "computes": True,
        "equal": sum(own["tokens"] == other["tokens"] for own, other in pairs),
        "of": len(pairs),
        "prompts_of_equal_length": sum(len(own["prompt"]) == other["prompt_tokens"] for own, other in pairs),
        "prompts_with_equal_text": sum(_same_text(own["prompt"], other["texts"]) for own, other in pairs),
        "right_ours": sum(own["right"] for own, _ in pairs),
        "right_theirs": sum(map(is_right, (other["tokens"] for _, other in pairs), asked, repeat(tokenizer))),
    }


def is_right(tokens: list[int], question: Question, tokenizer: Tokenizer) -> bool:
    """Whether tokens give the answer, behind the reasoning."""
    return tokenizer.decode(tokens).rpartition("</think>")[2].strip() == question.answer


def _same_text(prompt: list[int], texts: list[list[int]]) -> bool:
    """Whether the prompt begins and ends with llama.cpp's ids; the tokens of the image stand between."""
    before, after = texts
    return prompt[: len(before)] == before and prompt[-len(after) :] == after


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--environment", type=Path, required=True, help="folder of llama.cpp's Python environment")
    parser.add_argument("--work", type=Path, required=True, help="folder for bundles, images and finished cases")
    parser.add_argument("--questions", type=int, default=100)
    parser.add_argument("--only", action="append", help="the cases that contain this")
    arguments = parser.parse_args()
    done = arguments.work / "rows"
    done.mkdir(parents=True, exist_ok=True)
    python = make_environment(arguments.environment)
    for number, case in enumerate(CASES):
        path = done / f"{number:02}.json"
        if path.exists() or (arguments.only and not any(part in case.name for part in arguments.only)):
            continue
        row = row_of(case, python, arguments.work, arguments.questions)
        print(json.dumps(row), file=sys.stderr, flush=True)
        path.write_text(json.dumps(row), encoding="utf-8")
    matrix = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(done.glob("*.json"))]
    earlier = newest_results("llama-cpp-oracle")["matrix"] if arguments.only else []
    rows = {row["artifact"]: row for row in (*earlier, *matrix)}
    content = {"machine": machine(("torch", "gguf")), "matrix": [*rows.values()]}
    print(write_results("llama-cpp-oracle", content))


if __name__ == "__main__":
    main()
