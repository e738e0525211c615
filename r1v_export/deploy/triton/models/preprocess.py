"""`r1v_preprocess`: a conversation and its images become token ids and tiles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from r1v_export.contract import INPUT_IDS, PIXEL_VALUES
from r1v_export.deploy.triton.models import python_backend as triton
from r1v_export.deploy.triton.tensors import (
    ENABLE_THINKING,
    IMAGE,
    MESSAGES,
    PROMPT,
    TEXT_INPUT,
    THINKING,
    TILES_PER_IMAGE,
)
from r1v_export.errors import InputError
from r1v_export.processing.image_source import read_data_url
from r1v_export.processing.load_image import load_image
from r1v_export.processing.pipeline_document import open_files
from r1v_export.processing.preprocess import pixel_values
from r1v_export.runner.prompt_encoder import PromptEncoder, Request
from r1v_export.serve.conversation import to_request
from r1v_export.serve.protocol import MessagesDocument
from r1v_export.strict import load_json, parse_fields

MAX_IMAGES = 64
"""Images of a request, at most."""


class TritonPythonModel:
    """Reads requests; its responses are what `r1v_vision` and `r1v_llm` take."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Open the bundle's tokenizer and pipeline."""
        tokenizer, self.pipeline = open_files(triton.ModelArguments(args).bundle, keep=True)
        self.prompts = PromptEncoder(tokenizer, self.pipeline, self.pipeline.positions.max_positions)

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answer each request on its own: what is wrong with one is no other's concern."""
        return [self._respond(request) for request in requests]

    def _respond(self, request: Any) -> Any:
        try:
            return triton.response(**self._prepare(self._read(request)))
        except Exception as error:
            return triton.error_response(error)

    def _prepare(self, request: Request) -> dict[str, np.ndarray]:
        pixels_T3SS, tiles_per_image = pixel_values(
            request.images, self.pipeline.tiling.spec, self.pipeline.image_policy
        )
        outputs = {
            INPUT_IDS: np.array(self.prompts.encode_request(request, tiles_per_image), dtype=np.int64),
            PIXEL_VALUES: pixels_T3SS,
            TILES_PER_IMAGE: np.array(tiles_per_image, dtype=np.int64),
        }
        if not request.raw:
            outputs[THINKING] = np.array([request.think and bool(self.prompts.template.thinking)])
        return outputs

    def _read(self, request: Any) -> Request:
        texts = [triton.text_input(request, name) for name in (TEXT_INPUT, MESSAGES, PROMPT)]
        question, messages, prompt = texts
        images = [image for image in triton.bytes_inputs(request, IMAGE) if image]
        think = triton.flag_input(request, ENABLE_THINKING, default=True)
        if len(images) > MAX_IMAGES:
            raise InputError("The request has too many images.", expected=f"at most {MAX_IMAGES}", found=len(images))
        if texts.count(None) != 2 or (question is None and images):
            raise InputError(
                "The request is no question and no conversation.",
                expected=f"{TEXT_INPUT}, with {IMAGE} for each image; or {MESSAGES}, with images as data URLs; "
                f"or {PROMPT}, a text that is continued",
            )
        if question is not None:
            return Request.ask(question, *map(self._load, images), think=think)
        if prompt is not None:
            return Request.continuation(prompt)
        what = f"{MESSAGES} is no conversation"
        fields = {"messages": load_json(messages or "", InputError, what)}
        document = parse_fields(MessagesDocument, fields, InputError, what)
        return to_request(document.messages, self._load_url, think, self.pipeline.reasoning.pair)

    def _load(self, image: bytes) -> Image.Image:
        """An image from an encoded file, or from a data URL."""
        if image.startswith(b"data:"):
            return self._load_url(image.decode("latin-1"))
        return load_image(image, self.pipeline.image_policy)

    def _load_url(self, url: str) -> Image.Image:
        if not url.startswith("data:"):
            raise InputError("An image's URL cannot be used.", expected="a data: URL", found=url[:80])
        return load_image(read_data_url(url), self.pipeline.image_policy)
