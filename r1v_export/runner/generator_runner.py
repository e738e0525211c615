"""The way from images and a question to an answer where a library decodes, over any `generation.Generator`:

tiles -> vision -> projector -> the library -> reasoning and text
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from r1v_export.contract import VisionEngine
from r1v_export.errors import GraphError
from r1v_export.generation import EncodedImage, Generation, Generator, Sampling
from r1v_export.processing.tokenizer import Tokenizer
from r1v_export.runner.answer import AnswerStream, AnswerText, Timings, TokenEvent
from r1v_export.runner.base import TILES_PER_RUN, BaseRunner, Request
from r1v_export.runner.kv_cache import new_token_budget
from r1v_export.serialized.pipeline import PipelineDocument


@dataclass
class ImagePrompt:
    """A request on its way to the library.

    Attributes:
        token_ids: the whole prompt, an image token for each row of an image.
        thinking: the prompt has opened reasoning; None for a continuation, which has none.
    """

    token_ids: list[int]
    images: list[EncodedImage]
    thinking: bool | None
    timings: Timings


class GeneratorRunner(BaseRunner[ImagePrompt]):
    """Answers questions with a library's own decoding. Requests of a batch are open at the same time.

    Args:
        generator: the language model.
        vision: encodes images.
        tiles_per_run: how many tiles that does together: more where it is spread over several GPUs.

    The other arguments are `BaseRunner`'s.
    """

    def __init__(
        self,
        generator: Generator,
        vision: VisionEngine,
        tokenizer: Tokenizer,
        pipeline: PipelineDocument,
        hidden: int,
        tiles_per_run: int = TILES_PER_RUN,
    ) -> None:
        positions = min(generator.max_tokens, pipeline.positions.max_positions)
        super().__init__(vision, tokenizer, pipeline, hidden, positions, tiles_per_run)
        self.generator = generator

    @property
    def name(self) -> str:
        return self.generator.name

    def prepare(self, request: Request, cancel: threading.Event) -> ImagePrompt:
        encoded = self.encode_images(request, cancel)
        tokens_per_tile = self.pipeline.tokens_per_tile
        ends = np.cumsum([0, *encoded.tiles_per_image])
        images = [
            EncodedImage.of(
                encoded.pixels[start:end], encoded.image_embeds[start * tokens_per_tile : end * tokens_per_tile]
            )
            for start, end in pairwise(ends)
        ]
        return ImagePrompt(encoded.token_ids, images, encoded.thinking, encoded.timings)

    def generate_batch(
        self,
        requests: Sequence[ImagePrompt],
        samplings: Sequence[Sampling],
        indices: Sequence[int],
        cancel: threading.Event,
    ) -> Iterator[TokenEvent]:
        # Also where the caller stops listening: nothing must go on for nobody.
        with ExitStack() as opened:
            jobs = []
            for prompt, sampling, index in zip(requests, samplings, indices, strict=True):
                generation = self._begin(prompt, sampling, cancel)
                opened.callback(generation.close)
                text = AnswerText(self.tokenizer.token_bytes, sampling, prompt.thinking, self.pipeline.reasoning.pair)
                tokens = sampling.max_new_tokens, prompt.timings, len(prompt.token_ids)
                stream = AnswerStream(index, text, self.stop_ids, *tokens)
                jobs.append(RequestState(generation, stream))
            while jobs:
                for job in jobs:
                    yield from job.events()
                jobs = [job for job in jobs if not job.stream.done]

    def _begin(self, prompt: ImagePrompt, sampling: Sampling, cancel: threading.Event) -> Generation:
        max_new_tokens = new_token_budget(len(prompt.token_ids), sampling.max_new_tokens, self.max_positions)
        sampling = replace(sampling, max_new_tokens=max_new_tokens)
        return self.generator.generate(prompt.token_ids, prompt.images, sampling, self.stop_ids, cancel)


class RequestState:
    """One open request and its answer. Its clock starts here: `prefill_ms` is the time to the first token, waiting for
    a place in the library's batch included."""

    def __init__(self, generation: Generation, stream: AnswerStream) -> None:
        self.generation, self.stream = generation, stream
        self._clock = time.perf_counter()

    def events(self) -> Iterator[TokenEvent]:
        """Yield the events of the next tokens; there may be none.

        Raises:
            GraphError: the library ended the answer without a reason.
        """
        generated = next(self.generation, None)
        if generated is None:
            raise GraphError("The library ended an answer without saying why.", where="decoder")
        self._measure()
        tokens: list[int | None] = [*generated.token_ids]
        if generated.finish_reason is not None and not tokens:
            tokens = [None]
        for token, is_last in zip(tokens, [False] * (len(tokens) - 1) + [True], strict=False):
            yield self.stream.push(token, generated.finish_reason if is_last else None)
            if self.stream.done:
                self.generation.close()
                return

    def _measure(self) -> None:
        now, timings = time.perf_counter(), self.stream.timings
        passed_ms = (now - self._clock) * 1000
        if self.stream.token_ids:
            timings.decode_ms += passed_ms
        else:
            timings.prefill_ms += passed_ms
        self._clock = now
