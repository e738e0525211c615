"""What runners share: a request up to where decoding begins, and requests answered together."""

from __future__ import annotations

import logging
import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from r1v_export.contract import PREFILL_CHUNK, VisionEngine
from r1v_export.count import Count
from r1v_export.errors import R1VError, UsageError
from r1v_export.generation import Sampling
from r1v_export.log_event import log_event
from r1v_export.processing.generation_config import default_sampling
from r1v_export.processing.tokenizer import Tokenizer
from r1v_export.runner.answer import CANCELLED_BEFORE_START, Answer, AnswerStream, AnswerText, Timings, TokenEvent
from r1v_export.runner.batching.batch import Batch
from r1v_export.runner.encoded_prompt import EncodedPrompt, OpenPrompt
from r1v_export.runner.guided import GuideCompiler
from r1v_export.runner.image_encoder import ImageEncoder
from r1v_export.runner.prompt_encoder import PromptEncoder, Request
from r1v_export.serialized.pipeline import PipelineDocument

if TYPE_CHECKING:
    from PIL import Image

_LOG = logging.getLogger(__name__)

TILES_PER_RUN = 4
"""Tiles that go through the vision graph at once: bounds the memory its activations take."""

MAX_BATCH = 8
"""Requests decoded together unless the caller says otherwise; further ones wait until one ends."""


class CancelledError(Exception):
    """The caller's event was set before decoding began."""


class BaseRunner(PromptEncoder, ABC):
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
        super().__init__(tokenizer, pipeline, max_positions)
        self.vision, self.hidden, self.tiles_per_run = vision, hidden, tiles_per_run
        self.stop_ids, self.generation_config = pipeline.stop_ids, pipeline.generation_config
        self._guides = GuideCompiler(tokenizer, self.stop_ids)
        self.draft_tokens = 0
        """What `generate` opens its batches with."""
        self.image_note: str | None = None
        """What people should know of what encodes images, in a line."""
        self.decoder_note: str | None = None
        """The same of what decodes."""

    @property
    @abstractmethod
    def name(self) -> str:
        """Of what answers."""

    def ask(
        self, question: str, *images: Image.Image | str | Path, think: bool = True, sampling: Sampling | None = None
    ) -> Answer:
        """The answer to a single question; images given by their path are read by the bundle's policy."""
        loaded = map(self._loaded, images)
        return self.answer(Request.ask(question, *loaded, think=think), sampling)

    def _loaded(self, image: Image.Image | str | Path) -> Image.Image:
        from PIL import Image

        from r1v_export.processing.load_image import load_image

        return image if isinstance(image, Image.Image) else load_image(image, self.image_policy)

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
        max_rows: int = MAX_BATCH,
    ) -> Iterator[TokenEvent]:
        """Answer requests together, token by token.

        Args:
            sampling: for all requests, or one for each; `default_sampling` of the checkpoint if omitted.
            cancel: once set, from any thread, every unfinished answer ends with what it has.
            max_rows: requests decoded together; further ones wait until one ends.

        Raises:
            InputError: a request that cannot be used.
            BundleError: no sampling is given, and generation_config.json has none that can be used.
            GraphError: a stage gives numbers that are not finite, or fails.
        """
        samplings = _one_each(sampling or default_sampling(self.generation_config), len(requests))
        cancel = cancel or threading.Event()
        max_rows = min(max_rows, max(1, len(requests)))
        with self.open_batch(max_rows, draft_tokens=self.draft_tokens) as batch:
            yield from self.drive(batch, self.image_encoder(), requests, samplings, cancel, max_rows)

    def drive(
        self,
        batch: Batch[Any],
        encoder: ImageEncoder,
        requests: Sequence[Request],
        samplings: Sequence[Sampling],
        cancel: threading.Event,
        max_rows: int = MAX_BATCH,
    ) -> Iterator[TokenEvent]:
        """Answer requests with a batch that has no others, as `generate`; whatever happens, none is left in it."""
        waiting = deque(enumerate(requests))
        held: EncodedPrompt | None = None
        try:
            while waiting or batch.running:
                while waiting and len(batch.running) < max_rows and not cancel.is_set():
                    index, request = waiting[0]
                    try:
                        held = held or self.prepare(request, encoder, cancel)
                    except CancelledError:
                        break
                    if batch.admit(held, samplings[index], self.stream(index, held, samplings[index])) is None:
                        break
                    held = None
                    waiting.popleft()
                if cancel.is_set():
                    yield from [batch.end(state, "cancelled") for state in [*batch.running]]
                    yield from (TokenEvent(index, None, "", "", CANCELLED_BEFORE_START) for index, _ in waiting)
                    return
                for _, event in batch.step():
                    if isinstance(event, R1VError):
                        raise event
                    yield event
        finally:
            for state in [*batch.running]:
                batch.drop(state)

    @abstractmethod
    def open_batch(
        self,
        max_rows: int,
        cache_bytes: int | None = None,
        keep_prefixes: bool = False,
        prefill_chunk: int | None = PREFILL_CHUNK,
        draft_tokens: int = 0,
    ) -> Batch[Any]:
        """Requests that are answered together, none yet.

        Args:
            max_rows: how many, at most.
            cache_bytes: of the key-value cache, at most; None for any.
            keep_prefixes: keep what finished requests leave in the cache, for those that begin alike.
            prefill_chunk: prompt tokens between two decoder steps, at most; None for what the engine says, see
                `PrefillLimits`.
            draft_tokens: of a request that a step checks, at most, as in `batching.speculation`; 0 for none.
        """

    def image_encoder(self, cache_bytes: int = 0) -> ImageEncoder:
        """A new encoder of this runner's images, which keeps `cache_bytes` of embeddings."""
        return ImageEncoder(self.vision, self.tiling, self.image_policy, self.tiles_per_run, cache_bytes)

    def prepare(self, request: Request, encoder: ImageEncoder, cancel: threading.Event) -> EncodedPrompt:
        """All that comes before the decoder.

        Raises:
            CancelledError: `cancel` was set meanwhile.
            InputError: the request cannot be used.
            GraphError: an image's numbers are not finite.
        """
        prompt = self.open_prompt(request, encoder)
        while not prompt.done:
            if cancel.is_set():
                raise CancelledError
            encoder.run_batch()
        return prompt.result()

    def open_prompt(self, request: Request, encoder: ImageEncoder) -> OpenPrompt:
        """A request's tokens, with images that are still to be encoded.

        Raises:
            InputError: the request cannot be used.
        """
        timings = Timings()
        with timings.measure("preprocess"):
            images = [encoder.open(image) for image in request.images]
            token_ids = self.encode_request(request, [image.tiles for image in images])
        message = "prompt: %(tokens)s, %(images)s in %(tiles)s"
        tiles = sum(image.tiles for image in images)
        sizes = {
            "tokens": Count(len(token_ids), "token"),
            "images": Count(len(images), "image"),
            "tiles": Count(tiles, "tile"),
        }
        log_event(_LOG, logging.INFO, message, **sizes)
        thinking = None if request.raw else request.think and bool(self.template.thinking)
        return OpenPrompt(token_ids, images, thinking, timings)

    def stream(self, index: int, prompt: EncodedPrompt, sampling: Sampling) -> AnswerStream:
        """The answer to a prompt, which has no token yet.

        Raises:
            InputError: its guide cannot be used.
            CapabilityError: guides need llguidance, which is not here.
        """
        text = AnswerText(self.tokenizer.token_bytes, sampling, prompt.thinking, self.pipeline.reasoning.pair)
        tokens = sampling.max_new_tokens, prompt.timings, len(prompt.token_ids)
        stop_ids = frozenset[int]() if sampling.ignore_eos else self.stop_ids
        stream = AnswerStream(index, text, stop_ids, *tokens)
        if sampling.guide is not None:
            stream.guide = self._guides.compile(sampling.guide)
        return stream


def _one_each(sampling: Sampling | Sequence[Sampling], count: int) -> Sequence[Sampling]:
    samplings = [sampling] * count if isinstance(sampling, Sampling) else sampling
    if len(samplings) != count:
        raise UsageError(
            "The numbers of samplings and of requests differ.",
            expected=count,
            found=len(samplings),
            fix="give one sampling for all, or one for each request",
        )
    return samplings
