"""Requests of the runner become inputs of the Triton model."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from PIL import Image

from r1v_export.deploy.triton.sampling_parameters import sampling_json
from r1v_export.deploy.triton.tensors import ENABLE_THINKING, MESSAGES, PROMPT, SAMPLING_PARAMETERS
from r1v_export.generation import Sampling
from r1v_export.processing.prompt import IMAGE_PLACEHOLDER, Turn
from r1v_export.runner.prompt_encoder import Request
from r1v_export.serve.images import ENCODED


def model_inputs(request: Request, sampling: Sampling) -> dict[str, np.ndarray | bytes]:
    """The inputs of `r1v` that ask for the same."""
    parameters = {SAMPLING_PARAMETERS: sampling_json(sampling).encode()}
    if request.raw:
        (turn,) = request.turns
        return {PROMPT: turn.text.encode(), **parameters}
    conversation = json.dumps(list(messages(request)), ensure_ascii=False).encode()
    return {MESSAGES: conversation, ENABLE_THINKING: np.array([request.think]), **parameters}


def messages(request: Request) -> Iterator[Mapping[str, Any]]:
    """The conversation in the OpenAI API's JSON: what `serve.conversation.to_request` makes the same request of."""
    images = iter(request.images)
    for turn in request.turns:
        yield {"role": turn.role, "content": list(_parts(turn, images)) if turn.images else turn.text}


def _parts(turn: Turn, images: Iterator[Image.Image]) -> Iterator[Mapping[str, Any]]:
    """Texts and images of a turn. Its parts are lines, a placeholder is the line of an image; a question that has none
    has its images before it."""
    placed = turn.text if IMAGE_PLACEHOLDER in turn.text else "\n".join([IMAGE_PLACEHOLDER] * turn.images + [turn.text])
    texts = placed.split(IMAGE_PLACEHOLDER)
    for index, text in enumerate(texts):
        if index:
            yield {"type": "image_url", "image_url": {"url": _data_url(next(images))}}
        lines = text.split("\n")
        # The line breaks at an image's sides are those that parts are joined with.
        inner = lines[1 if index else 0 : -1 if index < len(texts) - 1 else None]
        if inner:
            yield {"type": "text", "text": "\n".join(inner)}


def _data_url(image: Image.Image) -> str:
    content = image.info.get(ENCODED)
    if content is None:
        file = io.BytesIO()
        image.save(file, "PNG", compress_level=1)
        content = file.getvalue()
    return "data:image;base64," + base64.b64encode(content).decode()
