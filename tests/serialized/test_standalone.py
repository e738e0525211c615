"""contract.json and pipeline.json are enough to answer: a program that imports nothing of this package gives the same
tokens."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

from r1v_export.generation import Sampling
from r1v_export.processing.load_image import load_image
from r1v_export.runner.open_runner import open_runner
from r1v_export.runner.prompt_encoder import Request

STANDALONE = Path(__file__).with_name("standalone.py")
IMAGES = Path(__file__).parents[2] / "examples" / "images"
QUESTIONS = {
    "06-count.png": "How many objects do you see?",
    "05-chart.png": "How tall is the green bar?",
    "02-shape.png": "Which shape does the black object have?",
}


def test_the_program_imports_nothing_of_this_package_and_is_short() -> None:
    tree = ast.parse(STANDALONE.read_text(encoding="utf-8"))
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert imported == {"json", "sys", "pathlib", "numpy", "onnxruntime", "PIL", "tokenizers"}
    assert len(STANDALONE.read_text(encoding="utf-8").splitlines()) <= 120


@pytest.mark.parametrize(("image", "question"), QUESTIONS.items(), ids=QUESTIONS)
def test_it_gives_the_tokens_of_our_runner(nano_bundle: Path, tmp_path: Path, image: str, question: str) -> None:
    command = [sys.executable, STANDALONE, nano_bundle, IMAGES / image, question]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True, cwd=tmp_path).stdout)
    request = Request.ask(question, load_image(IMAGES / image))
    answer = open_runner(nano_bundle, vision_target="onnxruntime").answer(request, Sampling(max_new_tokens=128))
    assert found == list(answer.token_ids)
    assert len(found) > 20
