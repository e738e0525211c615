"""vLLM's own answers to held-out questions about r1v-nano, as they were measured, against this package's."""

from __future__ import annotations

import json
from pathlib import Path

from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.generation import Sampling
from r1v_export.nano.dataset import sample
from r1v_export.processing.pipeline_document import describe_pipeline
from r1v_export.processing.tokenizer import Tokenizer
from r1v_export.reference.model import ReferenceEngine, load
from r1v_export.runner.base import Request
from r1v_export.runner.engine_runner import EngineRunner

RESULTS = Path(__file__).parents[2] / "benchmarks/results/2026-11-26-vllm-oracle.json"


def test_the_tokens_that_vllm_generated_are_generated_here() -> None:
    golden = json.loads(RESULTS.read_text())["golden"]
    checkpoint = Checkpoint.open()
    tokenizer = Tokenizer.from_folder(checkpoint.folder)
    pipeline = describe_pipeline(checkpoint.spec, tokenizer, checkpoint.generation_config)
    runner = EngineRunner(ReferenceEngine(load(checkpoint)), tokenizer, pipeline)
    asked = [sample("eval", entry["index"]) for entry in golden]
    requests = [Request.ask(each.question, each.image) for each in asked]
    answers = runner.answers(requests, Sampling(temperature=0.0, max_new_tokens=96))
    assert [list(answer.token_ids) for answer in answers] == [entry["tokens"] for entry in golden]
    assert len(golden) == 8
