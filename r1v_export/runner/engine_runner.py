"""The whole way from images and a question to an answer, over any `contract.Engine`:

tiles -> vision -> projector -> embed -> prefill -> decode -> reasoning and text
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from r1v_export.contract import Engine
from r1v_export.errors import InputError
from r1v_export.generation import Sampling
from r1v_export.log_event import log_event
from r1v_export.processing.tokenizer import Tokenizer
from r1v_export.runner.answer import AnswerStream, AnswerText, Timings, TokenEvent
from r1v_export.runner.base import BaseRunner, Request, require_finite
from r1v_export.runner.kv_cache import KVCache, new_token_budget, plan_capacity
from r1v_export.runner.sampling import Sampler
from r1v_export.runner.scheduler import SequenceState, embed_chosen, generate_rows
from r1v_export.serialized.pipeline import PipelineDocument

_LOG = logging.getLogger(__name__)


@dataclass
class Prompt:
    """A request on its way to the decoder.

    Attributes:
        token_ids: the whole prompt.
        reused_tokens: how many of them the cache already holds.
        inputs_embeds: [S, hidden] float32 of the others.
        thinking: the prompt has opened reasoning; None for a continuation, which has none.
    """

    token_ids: list[int]
    inputs_embeds: np.ndarray
    thinking: bool | None
    timings: Timings
    reused_tokens: int = 0


class EngineRunner(BaseRunner[Prompt]):
    """Answers questions with one engine.

    Args:
        engine: the reference or any built target.

    The other arguments are `BaseRunner`'s.
    """

    def __init__(self, engine: Engine, tokenizer: Tokenizer, pipeline: PipelineDocument) -> None:
        super().__init__(engine, tokenizer, pipeline, engine.sizes.hidden, pipeline.positions.max_positions)
        self.engine = engine

    @property
    def name(self) -> str:
        return self.engine.name

    def prepare(self, request: Request, cancel: threading.Event) -> Prompt:
        encoded = self.encode_images(request, cancel)
        with encoded.timings.measure("embed"):
            inputs_embeds_SE = self.inputs_embeds(encoded.token_ids, encoded.image_embeds)
        return Prompt(encoded.token_ids, inputs_embeds_SE, encoded.thinking, encoded.timings)

    def generate_batch(
        self,
        requests: Sequence[Prompt],
        samplings: Sequence[Sampling],
        indices: Sequence[int],
        cancel: threading.Event,
    ) -> Iterator[TokenEvent]:
        yield from self.decode(requests, samplings, self.new_cache(requests, samplings), indices, cancel)

    def inputs_embeds(self, token_ids: Sequence[int], image_embeds_NE: np.ndarray) -> np.ndarray:
        """Embeddings [S, hidden] of prompt tokens, with the images' in their places.

        Raises:
            InputError: there are not as many image embeddings as image tokens.
        """
        ids_1S = np.array([token_ids], dtype=np.int64)
        image_tokens = int((ids_1S == self.pipeline.image_token_id).sum())
        if image_tokens != len(image_embeds_NE):
            raise InputError(
                "The prompt's image tokens do not match the images.",
                where="embed",
                expected=f"{len(image_embeds_NE)} image tokens, one for each image embedding",
                found=image_tokens,
                fix="check that image_token_id is the tokenizer's <IMG_CONTEXT>",
            )
        embeds_SE: np.ndarray = self.engine.embed(ids_1S, image_embeds_NE)[0]
        require_finite(embeds_SE, "embed")
        return embeds_SE

    def new_cache(self, prompts: Sequence[Prompt], samplings: Sequence[Sampling]) -> KVCache:
        """A cache just large enough for prompts and answers."""
        lengths = [len(prompt.token_ids) for prompt in prompts]
        tokens = max(self.tokens_needed(*each) for each in zip(lengths, samplings, strict=True))
        capacity = plan_capacity(tokens, self.max_positions)
        message = "cache: %(rows)d rows of %(capacity)d tokens"
        log_event(_LOG, logging.DEBUG, message, rows=len(prompts), capacity=capacity)
        return KVCache(self.engine.decoder(len(prompts), capacity))

    def tokens_needed(self, prompt_tokens: int, sampling: Sampling) -> int:
        """Cache slots that a prompt and its answer may come to take."""
        return prompt_tokens + new_token_budget(prompt_tokens, sampling.max_new_tokens, self.max_positions)

    def decode(
        self,
        prompts: Sequence[Prompt],
        samplings: Sequence[Sampling],
        cache: KVCache,
        indices: Sequence[int],
        cancel: threading.Event,
    ) -> Iterator[TokenEvent]:
        """Prefill and decode one batch, one event per token; `indices` are the requests' numbers in the events."""
        jobs = [RequestState(self, *each) for each in zip(prompts, samplings, indices, strict=True)]
        rows = [job.row for job in jobs]
        steps = generate_rows(cache, rows, partial(embed_chosen, self.engine), cancel)
        stage = "prefill"
        while True:
            timings = Timings()
            with timings.measure(stage):
                advanced = next(steps, None)
            for job in jobs:
                job.add_time(timings)
            if advanced is None:
                break
            stage = "decode"
            yield jobs[advanced].event()
        yield from (job.event() for job in jobs if not job.done)


class RequestState:
    """One request of a batch: its row in the decoder and its answer."""

    def __init__(self, runner: EngineRunner, prompt: Prompt, sampling: Sampling, index: int) -> None:
        max_new_tokens = new_token_budget(len(prompt.token_ids), sampling.max_new_tokens, runner.max_positions)
        sampler = Sampler(sampling, prompt.token_ids, runner.engine.sizes.vocab)
        self.row = SequenceState(prompt.inputs_embeds, sampler, runner.stop_ids, max_new_tokens)
        text = AnswerText(runner.tokenizer.token_bytes, sampling, prompt.thinking, runner.pipeline.reasoning.pair)
        self.stream = AnswerStream(
            index,
            text,
            runner.stop_ids,
            sampling.max_new_tokens,
            prompt.timings,
            len(prompt.token_ids),
            prompt.reused_tokens,
        )

    @property
    def done(self) -> bool:
        """Whether the answer has ended."""
        return self.stream.done

    def add_time(self, timings: Timings) -> None:
        """Count the batch's time for this request too, until it is done."""
        if not self.done:
            self.stream.timings.prefill_ms += timings.prefill_ms
            self.stream.timings.decode_ms += timings.decode_ms

    def event(self) -> TokenEvent:
        """The event of the row's newest token, or of its being cancelled."""
        token_id = None if self.row.finish_reason == "cancelled" else self.row.token_ids[-1]
        event = self.stream.push(token_id, self.row.finish_reason)
        self.row.finish_reason = self.stream.finish_reason
        return event
