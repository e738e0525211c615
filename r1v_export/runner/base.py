"""What runners share: a request up to where decoding begins, and requests answered in batches.

Shape letters: T tiles, S tile size, N image tokens of all images.
"""

from __future__ import annotations

import logging
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np
from PIL import Image

from r1v_export.contract import VisionEngine
from r1v_export.errors import GraphError, InputError, UsageError
from r1v_export.generation import Sampling
from r1v_export.log_event import log_event
from r1v_export.processing.generation_config import default_sampling
from r1v_export.processing.load_image import load_image
from r1v_export.processing.pipeline_document import document_template
from r1v_export.processing.preprocess import pixel_values, tile_count
from r1v_export.processing.prompt import Turn, encode, require_tokenizable
from r1v_export.processing.tokenizer import Tokenizer
from r1v_export.runner.answer import CANCELLED_BEFORE_START, Answer, Timings, TokenEvent
from r1v_export.runner.kv_cache import new_token_budget
from r1v_export.serialized.pipeline import PipelineDocument

_LOG = logging.getLogger(__name__)

TILES_PER_RUN = 4
"""Tiles that go through the vision graph at once: bounds the memory its activations take."""

MAX_BATCH = 8
"""Requests decoded together; further ones wait for the next batch."""

Prepared = TypeVar("Prepared")
"""A request on its way to the decoder, as a runner's decoder takes it."""


@dataclass(frozen=True)
class Request:
    """A conversation to be answered.

    Attributes:
        turns: the last is the user's; turns that are not are as `processing.prompt` says.
        images: the images of all turns, in order.
        think: let the model think before it answers, if its template knows how.
        raw: continue the text of the only turn, without a template around it.
    """

    turns: tuple[Turn, ...]
    images: tuple[Image.Image, ...] = ()
    think: bool = True
    raw: bool = False

    @classmethod
    def ask(cls, question: str, *images: Image.Image, think: bool = True) -> Request:
        """A single question about any number of images."""
        return cls((Turn("user", question, images=len(images)),), images, think)

    @classmethod
    def continuation(cls, text: str) -> Request:
        """A text that the model continues as it is, without template, images or reasoning."""
        return cls((Turn("user", text),), think=False, raw=True)


@dataclass(frozen=True)
class EncodedImages:
    """A request whose images are encoded.

    Attributes:
        token_ids: the whole prompt, an image token for each row of `image_embeds`.
        pixels: tiles of all images [T, 3, S, S] float32.
        tiles_per_image: how many of them are each image's.
        image_embeds: [N, hidden] float32.
        thinking: the prompt has opened reasoning; None for a continuation, which has none.
    """

    token_ids: list[int]
    pixels: np.ndarray
    tiles_per_image: Sequence[int]
    image_embeds: np.ndarray
    thinking: bool | None
    timings: Timings


class CancelledError(Exception):
    """The caller's event was set before decoding began."""


class BaseRunner(ABC, Generic[Prepared]):
    """Answers questions. Not safe to share between threads, apart from the `cancel` events.

    Args:
        vision: encodes images.
        tokenizer: the checkpoint's.
        pipeline: the bundle's `pipeline.json`, or `describe_pipeline` of a checkpoint.
        hidden: size of an image token's embedding.
        max_positions: tokens of a prompt and its answer, at most.
        tiles_per_run: how many tiles are encoded together.
    """

    def __init__(
        self,
        vision: VisionEngine,
        tokenizer: Tokenizer,
        pipeline: PipelineDocument,
        hidden: int,
        max_positions: int,
        tiles_per_run: int = TILES_PER_RUN,
    ) -> None:
        self.vision, self.tokenizer, self.pipeline, self.hidden = vision, tokenizer, pipeline, hidden
        self.template, self.tiling, self.stop_ids = document_template(pipeline), pipeline.tiling.spec, pipeline.stop_ids
        self.generation_config = pipeline.generation_config
        self.max_positions, self.tiles_per_run = max_positions, tiles_per_run
        self.image_policy = pipeline.image_policy

    @property
    @abstractmethod
    def name(self) -> str:
        """Of what answers."""

    def ask(
        self, question: str, *images: Image.Image | str | Path, think: bool = True, sampling: Sampling | None = None
    ) -> Answer:
        """The answer to a single question; images given by their path are read by the bundle's policy."""
        loaded = (image if isinstance(image, Image.Image) else load_image(image, self.image_policy) for image in images)
        return self.answer(Request.ask(question, *loaded, think=think), sampling)

    def answer(
        self, request: Request, sampling: Sampling | None = None, cancel: threading.Event | None = None
    ) -> Answer:
        """The answer to one request."""
        return self.answers([request], sampling, cancel)[0]

    def answers(
        self,
        requests: Sequence[Request],
        sampling: Sampling | Sequence[Sampling] | None = None,
        cancel: threading.Event | None = None,
    ) -> list[Answer]:
        """The answers to several requests, in their order."""
        events = self.generate(requests, sampling, cancel)
        finished = {event.request: event.answer for event in events if event.answer is not None}
        return [finished[index] for index in range(len(requests))]

    def generate(
        self,
        requests: Sequence[Request],
        sampling: Sampling | Sequence[Sampling] | None = None,
        cancel: threading.Event | None = None,
    ) -> Iterator[TokenEvent]:
        """Answer requests in batches, token by token.

        Args:
            sampling: for all requests, or one for each; `default_sampling` of the checkpoint if omitted.
            cancel: once set, from any thread, every unfinished answer ends with what it has.

        Raises:
            InputError: a request that cannot be used.
            BundleError: no sampling is given, and generation_config.json has none that can be used.
            GraphError: a stage gives numbers that are not finite, or fails.
        """
        samplings = _one_each(sampling or default_sampling(self.generation_config), len(requests))
        cancel = cancel or threading.Event()
        for first in range(0, len(requests), MAX_BATCH):
            batch = range(first, min(first + MAX_BATCH, len(requests)))
            try:
                prepared = [self.prepare(requests[index], cancel) for index in batch]
            except CancelledError:
                yield from (TokenEvent(index, None, "", "", CANCELLED_BEFORE_START) for index in batch)
                continue
            yield from self.generate_batch(prepared, [samplings[index] for index in batch], batch, cancel)

    @abstractmethod
    def prepare(self, request: Request, cancel: threading.Event) -> Prepared:
        """All that comes before the decoder.

        Raises:
            CancelledError: `cancel` was set meanwhile.
        """

    @abstractmethod
    def generate_batch(
        self,
        requests: Sequence[Prepared],
        samplings: Sequence[Sampling],
        indices: Sequence[int],
        cancel: threading.Event,
    ) -> Iterator[TokenEvent]:
        """Answer requests together; `indices` are their numbers in the events."""

    def encode_images(self, request: Request, cancel: threading.Event) -> EncodedImages:
        """Tokens of a request, and embeddings of its images.

        Raises:
            CancelledError: `cancel` was set meanwhile.
        """
        timings = Timings()
        with timings.measure("preprocess"):
            pixels_T3SS, tiles_per_image = pixel_values(request.images, self.tiling, self.image_policy)
            token_ids = self.encode_request(request, tiles_per_image)
        log_prompt(len(token_ids), tiles_per_image)
        image_embeds_NE = self.image_embeds(pixels_T3SS, timings, cancel)
        thinking = None if request.raw else self.opens_reasoning(request.think)
        return EncodedImages(token_ids, pixels_T3SS, tiles_per_image, image_embeds_NE, thinking, timings)

    def tokenize(self, request: Request) -> list[int]:
        """Token ids of a request's prompt, with the image tokens that its images take; nothing is computed for them.

        Raises:
            InputError: a request that cannot be used.
        """
        return self.encode_request(request, [tile_count(*image.size, self.tiling) for image in request.images])

    def encode_request(self, request: Request, tiles_per_image: Sequence[int]) -> list[int]:
        """Token ids of a request's prompt, short enough for the model to answer it.

        Raises:
            InputError: a request that cannot be used.
        """
        if not request.raw:
            return self.encode(request.turns, tiles_per_image, request.think)
        (turn,) = request.turns
        require_tokenizable(request.turns, 0, self.max_positions)
        token_ids = self.tokenizer.encode_text(turn.text)
        if not token_ids:
            raise InputError("There is no text to continue.", where="prompt", expected="at least one token")
        new_token_budget(len(token_ids), 1, self.max_positions)
        return token_ids

    def encode(self, turns: Sequence[Turn], tiles_per_image: Sequence[int], think: bool) -> list[int]:
        """Token ids of a conversation, short enough for the model to answer it."""
        tokens_per_tile = self.pipeline.tokens_per_tile
        require_tokenizable(turns, sum(tiles_per_image) * tokens_per_tile, self.max_positions)
        token_ids = encode(self.tokenizer, self.template, turns, tiles_per_image, tokens_per_tile, think=think)
        new_token_budget(len(token_ids), 1, self.max_positions)
        return token_ids

    def opens_reasoning(self, think: bool) -> bool:
        """Whether the prompt ends by opening the reasoning."""
        return think and bool(self.template.thinking)

    def image_embeds(self, pixels_T3SS: np.ndarray, timings: Timings, cancel: threading.Event) -> np.ndarray:
        """Tiles [T, 3, S, S] -> the embeddings of their tokens [T * tokens_per_tile, hidden], a few tiles at a time."""
        embeds_NE = [np.zeros((0, self.hidden), dtype=np.float32)]
        for start in range(0, len(pixels_T3SS), self.tiles_per_run):
            if cancel.is_set():
                raise CancelledError
            with timings.measure("vision"):
                features = self.vision.vision(pixels_T3SS[start : start + self.tiles_per_run])
            require_finite(features, "vision")
            with timings.measure("projector"):
                embeds_TNE = self.vision.projector(features)
            require_finite(embeds_TNE, "projector")
            embeds_NE.append(embeds_TNE.reshape(-1, self.hidden))
        return np.concatenate(embeds_NE)


def log_prompt(tokens: int, tiles_per_image: Sequence[int], reused_tokens: int = 0) -> None:
    """Log the size of a prompt, never its content."""
    log_event(
        _LOG,
        logging.INFO,
        "prompt: %(tokens)d tokens, %(reused_tokens)d of them in the cache; %(images)d images in %(tiles)d tiles",
        tokens=tokens,
        reused_tokens=reused_tokens,
        images=len(tiles_per_image),
        tiles=sum(tiles_per_image),
    )


def _one_each(sampling: Sampling | Sequence[Sampling], count: int) -> Sequence[Sampling]:
    samplings = [sampling] * count if isinstance(sampling, Sampling) else sampling
    if len(samplings) != count:
        raise UsageError("Give one sampling, or one for each request.", expected=count, found=len(samplings))
    return samplings


def require_finite(array: np.ndarray, stage: str) -> None:
    """Check that an engine's output [...] has only finite numbers.

    Raises:
        GraphError: NaN or infinity among the numbers.
    """
    if not np.isfinite(array).all():
        raise GraphError(
            f"The {stage} graph gives numbers that are not finite.",
            where=stage,
            expected="finite numbers",
            found=f"{int((~np.isfinite(array)).sum())} of {array.size} are NaN or infinite",
            fix="run `r1v-export check` to find the first bad boundary, or build with --precision fp32",
        )
