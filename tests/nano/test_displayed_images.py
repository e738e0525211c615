"""Images whose stored pixels mislead are answered as a viewer shows them: orientation and transparency."""

from __future__ import annotations

from pathlib import Path

import pytest

from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.config import ImagePolicy
from r1v_export.processing.load_image import load_image
from r1v_export.processing.pipeline_document import describe_pipeline
from r1v_export.processing.tokenizer import Tokenizer
from r1v_export.reference.model import ReferenceEngine, load
from r1v_export.runner.engine_runner import EngineRunner
from r1v_export.runner.prompt_encoder import Request

IMAGES = Path(__file__).parents[1] / "data" / "images"
LEFT_OR_RIGHT = "Is the green cross left or right of the black triangle?"
HOW_TALL = "How tall is the green bar?"


@pytest.fixture(scope="module")
def engine(nano: Checkpoint) -> ReferenceEngine:
    return ReferenceEngine(load(nano))


def answer(nano: Checkpoint, engine: ReferenceEngine, name: str, question: str, policy: ImagePolicy) -> str:
    tokenizer = Tokenizer.from_folder(nano.folder)
    pipeline = describe_pipeline(nano.spec, tokenizer, nano.generation_config, image_policy=policy)
    runner = EngineRunner(engine, tokenizer, pipeline)
    return runner.answer(Request.ask(question, load_image(IMAGES / name, policy))).text


CASES = [
    *((f"left-right-orientation-{orientation}.jpg", LEFT_OR_RIGHT, "right") for orientation in (2, 3, 6, 8)),
    *((f"chart-transparent-hidden-{hidden}.png", HOW_TALL, "5") for hidden in ("black", "noise")),
]


@pytest.mark.parametrize(("name", "question", "right"), CASES)
def test_what_a_viewer_shows_is_answered(nano, engine, name, question, right):
    assert answer(nano, engine, name, question, "as_displayed") == right


@pytest.mark.parametrize(("name", "question", "right"), [CASES[0], CASES[-1]], ids=["orientation 2", "hidden noise"])
def test_the_published_reading_is_answered_differently(nano, engine, name, question, right):
    assert answer(nano, engine, name, question, "published") != right
