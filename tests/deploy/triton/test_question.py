"""Requests become inputs of the models, and the models' side makes the same requests of them."""

from __future__ import annotations

import base64
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from r1v_export.deploy.triton.question import messages, model_inputs
from r1v_export.generation import Sampling
from r1v_export.processing.image_source import read_data_url
from r1v_export.processing.load_image import load_image
from r1v_export.processing.prompt import Turn
from r1v_export.runner.prompt_encoder import Request
from r1v_export.serve.conversation import to_request
from r1v_export.serve.images import load_request_image
from r1v_export.serve.protocol import MessagesDocument
from r1v_export.serve.settings import ServerSettings

TAGS = ("<think>", "</think>")


def image(color: int) -> Image.Image:
    return Image.new("RGB", (3, 2), (color, 0, 7))


def read_back(request: Request) -> Request:
    document = MessagesDocument.model_validate({"messages": list(messages(request))})
    load = lambda url: load_image(read_data_url(url), "as_displayed")  # noqa: E731
    return to_request(document.messages, load, request.think, TAGS)


@pytest.mark.parametrize(
    "content",
    [
        "What?",
        [{"type": "text", "text": "What?\n\nAnd why?"}],
        ["image", {"type": "text", "text": "What?"}],
        [{"type": "text", "text": "Before"}, "image", "image", {"type": "text", "text": "\nafter\n"}],
        ["image", {"type": "text", "text": ""}, "image"],
        [{"type": "text", "text": ""}, "image", {"type": "text", "text": "\n"}, "image"],
    ],
)
def test_a_message_arrives_as_it_was_sent(content):
    parts = content if isinstance(content, str) else [part if part != "image" else _part() for part in content]
    asked = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": parts}]
    asked += [{"role": "assistant", "content": "x", "reasoning": "y"}, {"role": "user", "content": "Go on."}]
    document = MessagesDocument.model_validate({"messages": asked})
    sent = to_request(document.messages, lambda url: image(len(url)), True, TAGS)
    found = read_back(sent)
    assert found.turns == sent.turns
    assert [np.asarray(each).tolist() for each in found.images] == [np.asarray(each).tolist() for each in sent.images]


def _part() -> dict:
    return {"type": "image_url", "image_url": {"url": "data:,x"}}


def test_a_question_without_places_has_its_images_before_it():
    found = read_back(Request.ask("What?", image(1), image(2)))
    assert found.turns == (Turn("user", "<image>\n<image>\nWhat?", images=2),)
    assert [each.getpixel((0, 0)) for each in found.images] == [(1, 0, 7), (2, 0, 7)]


def test_an_image_is_passed_on_as_the_file_that_it_was():
    content = Path("examples/images/05-chart.png").read_bytes()
    url = "data:image/png;base64," + base64.b64encode(content).decode()
    loaded = load_request_image(url, "as_displayed", ServerSettings("m"))
    (message,) = messages(Request.ask("What?", loaded))
    (shown,) = [part for part in message["content"] if part["type"] == "image_url"]
    assert read_data_url(shown["image_url"]["url"]) == content


def test_a_text_that_is_continued_is_a_prompt():
    inputs = model_inputs(Request.continuation("It is"), Sampling())
    assert inputs.keys() == {"prompt", "sampling_parameters"}
    assert inputs["prompt"] == b"It is"
