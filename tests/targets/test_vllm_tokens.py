"""vLLM's own answers to held-out questions about r1v-nano, as they were measured, against this package's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.generation import Sampling
from r1v_export.nano.dataset import sample
from r1v_export.processing.pipeline_document import describe_pipeline
from r1v_export.processing.preprocess import pixel_values
from r1v_export.processing.tokenizer import Tokenizer
from r1v_export.reference.model import ReferenceEngine, load
from r1v_export.runner.engine_runner import EngineRunner
from r1v_export.runner.prompt_encoder import Request

GOLDEN = json.loads((Path(__file__).parent / "readers/vllm-0.32.0-answers.json").read_text())
ANSWERS = GOLDEN["answers"]


@pytest.fixture(scope="module")
def runner() -> EngineRunner[Any]:
    checkpoint = Checkpoint.open()
    tokenizer = Tokenizer.from_folder(checkpoint.folder)
    pipeline = describe_pipeline(checkpoint.spec, tokenizer, checkpoint.generation_config)
    return EngineRunner(ReferenceEngine(load(checkpoint)), tokenizer, pipeline)


@pytest.fixture(scope="module")
def requests() -> list[Request]:
    asked = [sample(GOLDEN["split"], answer["question"]) for answer in ANSWERS]
    return [Request.ask(each.question, each.image) for each in asked]


def test_the_prompt_of_a_question_is_vllms(runner: EngineRunner[Any], requests: list[Request]) -> None:
    for request, answer in zip(requests, ANSWERS, strict=True):
        _, tiles = pixel_values(request.images, runner.tiling, runner.image_policy)
        assert runner.encode(request.turns, tiles, request.think) == answer["prompt_ids"]


def test_the_tokens_that_vllm_generated_are_generated_here(runner: EngineRunner[Any], requests: list[Request]) -> None:
    answers = runner.answers(requests, Sampling(temperature=0.0, max_new_tokens=96))
    assert [list(answer.token_ids) for answer in answers] == [answer["tokens"] for answer in ANSWERS]
    assert len(ANSWERS) == 16
