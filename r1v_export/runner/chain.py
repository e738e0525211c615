"""The whole way from pictures and a question to an answer, over any `contract.Engine`:

tiles -> vision -> projector -> embed -> prefill -> decode -> thought and text
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from r1v_export.checkpoint.spec import ModelSpec
from r1v_export.contract import Engine
from r1v_export.errors import GraphError, InputError, UsageError
from r1v_export.reference.preprocess import pixel_values
from r1v_export.reference.prompt import Template, Turn, encode, stop_ids
from r1v_export.reference.tokenizer import Tokenizer
from r1v_export.runner.answer import CANCELLED_BEFORE_START, Answer, AnswerText, Timings, TokenEvent
from r1v_export.runner.kv_cache import KVCache, new_token_budget, plan_capacity
from r1v_export.runner.sampling import Sampler, Sampling
from r1v_export.runner.scheduler import FinishReason, Row, generate_rows

TILES_PER_RUN = 4
"""Tiles that go through the vision graph at once: bounds the memory its activations take."""

MAX_BATCH = 8
"""Requests decoded together; further ones wait for the next batch."""


@dataclass(frozen=True)
class Request:
    """A conversation to be answered.

    Attributes:
        turns: the last is the user's; turns that are not are as `reference.prompt` says.
        images: the pictures of all turns, in order.
        think: let the model think before it answers, if its template knows how.
    """

    turns: tuple[Turn, ...]
    images: tuple[Image.Image, ...] = ()
    think: bool = True

    @classmethod
    def ask(cls, question: str, *images: Image.Image, think: bool = True) -> Request:
        """A single question about any number of pictures."""
        return cls((Turn("user", question, images=len(images)),), images, think)


@dataclass
class Prompt:
    """A request on its way to the decoder.

    Attributes:
        token_ids: the whole prompt.
        reused_tokens: how many of them the cache already holds.
        inputs_embeds: [S, hidden] float32 of the others.
        thinking: the prompt has opened a thought.
    """

    token_ids: list[int]
    inputs_embeds: np.ndarray
    thinking: bool
    timings: Timings
    reused_tokens: int = 0


class CancelledError(Exception):
    """The caller's event was set before decoding began."""


class Runner:
    """Answers questions with one engine. Not safe to share between threads, apart from the `cancel` events.

    Args:
        engine: the reference or any built target.
        tokenizer: the checkpoint's.
        spec: the checkpoint's.
        template: how the family version writes a conversation, usually `TEMPLATES[spec.template]`.
        generation_config: the checkpoint's generation_config.json, for its stop tokens.
    """

    def __init__(
        self,
        engine: Engine,
        tokenizer: Tokenizer,
        spec: ModelSpec,
        template: Template,
        generation_config: Mapping[str, Any] | None = None,
    ) -> None:
        self.engine, self.tokenizer, self.spec, self.template = engine, tokenizer, spec, template
        self.stop_ids = stop_ids(tokenizer, template, generation_config or {})
        self.max_positions = spec.language.max_position_embeddings

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
            sampling: for all requests, or one for each; greedy where left out.
            cancel: once set, from any thread, every unfinished answer ends with what it has.

        Raises:
            InputError: a request that cannot be used.
            GraphError: a stage gives numbers that are not finite.
        """
        samplings = _one_each(sampling or Sampling(), len(requests))
        cancel = cancel or threading.Event()
        for first in range(0, len(requests), MAX_BATCH):
            batch = range(first, min(first + MAX_BATCH, len(requests)))
            yield from self._generate_batch([requests[i] for i in batch], [samplings[i] for i in batch], batch, cancel)

    def _generate_batch(
        self,
        requests: Sequence[Request],
        samplings: Sequence[Sampling],
        indices: Sequence[int],
        cancel: threading.Event,
    ) -> Iterator[TokenEvent]:
        prompts = []
        try:
            for request in requests:
                prompts.append(self.prepare(request, cancel))
        except CancelledError:
            yield from (TokenEvent(index, None, "", "", CANCELLED_BEFORE_START) for index in indices)
            return
        cache = self.new_cache(prompts, samplings)
        yield from self.decode(prompts, samplings, cache, indices, cancel)

    def prepare(self, request: Request, cancel: threading.Event) -> Prompt:
        """Tokens and embeddings of a request.

        Raises:
            CancelledError: `cancel` was set meanwhile.
        """
        timings = Timings()
        with timings.measure("preprocess"):
            pixels_T3SS, tiles_per_image = pixel_values(request.images, self.spec.tiling)
            token_ids = self.encode(request.turns, tiles_per_image, request.think)
        image_embeds_NE = self.image_embeds(pixels_T3SS, timings, cancel)
        with timings.measure("embed"):
            inputs_embeds_SE = self.inputs_embeds(token_ids, image_embeds_NE)
        return Prompt(token_ids, inputs_embeds_SE, self.opens_thought(request.think), timings)

    def encode(self, turns: Sequence[Turn], tiles_per_image: Sequence[int], think: bool) -> list[int]:
        """Token ids of a conversation, short enough for the model to answer it."""
        tokens_per_tile = self.spec.tokens_per_tile
        token_ids = encode(self.tokenizer, self.template, turns, tiles_per_image, tokens_per_tile, think=think)
        new_token_budget(len(token_ids), 1, self.max_positions)
        return token_ids

    def opens_thought(self, think: bool) -> bool:
        return think and bool(self.template.thinking)

    def image_embeds(self, pixels_T3SS: np.ndarray, timings: Timings, cancel: threading.Event) -> np.ndarray:
        """Tiles [T, 3, S, S] -> the embeddings of their tokens [T * tokens_per_tile, hidden], a few tiles at a time."""
        hidden = self.spec.language.hidden_size
        embeds_NE = [np.zeros((0, hidden), dtype=np.float32)]
        for start in range(0, len(pixels_T3SS), TILES_PER_RUN):
            if cancel.is_set():
                raise CancelledError
            with timings.measure("vision"):
                features = self.engine.vision(pixels_T3SS[start : start + TILES_PER_RUN])
            _require_finite(features, "vision")
            with timings.measure("projector"):
                embeds_TNE = self.engine.projector(features)
            _require_finite(embeds_TNE, "projector")
            embeds_NE.append(embeds_TNE.reshape(-1, hidden))
        return np.concatenate(embeds_NE)

    def inputs_embeds(self, token_ids: Sequence[int], image_embeds_NE: np.ndarray) -> np.ndarray:
        """Embeddings [S, hidden] of prompt tokens, with the pictures' in their places.

        Raises:
            InputError: there are not as many image embeddings as image tokens.
        """
        ids_1S = np.array([token_ids], dtype=np.int64)
        image_tokens = int((ids_1S == self.spec.image_token_id).sum())
        if image_tokens != len(image_embeds_NE):
            raise InputError(
                "The prompt's image tokens do not match the pictures.",
                where="embed",
                expected=f"{len(image_embeds_NE)} image tokens, one for each image embedding",
                found=image_tokens,
                fix="check that image_token_id is the tokenizer's <IMG_CONTEXT>",
            )
        embeds_SE = self.engine.embed(ids_1S, image_embeds_NE)[0]
        _require_finite(embeds_SE, "embed")
        return embeds_SE

    def new_cache(self, prompts: Sequence[Prompt], samplings: Sequence[Sampling]) -> KVCache:
        """A cache just large enough for prompts and answers."""
        lengths = [len(prompt.token_ids) for prompt in prompts]
        tokens = max(self.tokens_needed(*each) for each in zip(lengths, samplings, strict=True))
        return KVCache(self.engine.decoder(len(prompts), plan_capacity(tokens, self.max_positions)))

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
        jobs = [_Job(self, *each) for each in zip(prompts, samplings, indices, strict=True)]
        rows = [job.row for job in jobs]
        steps = generate_rows(cache, rows, self._embed_tokens, cancel)
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

    def _embed_tokens(self, ids_B1: np.ndarray) -> np.ndarray:
        # Should a model write <IMG_CONTEXT> itself, the embed graph takes an image row for it: these zeros.
        no_images = np.zeros((ids_B1.size, self.spec.language.hidden_size), dtype=np.float32)
        return self.engine.embed(ids_B1, no_images)


class _Job:
    """One request of a batch: its row in the decoder and its text."""

    def __init__(self, runner: Runner, prompt: Prompt, sampling: Sampling, index: int) -> None:
        self.prompt, self.index, self.done = prompt, index, False
        budget = new_token_budget(len(prompt.token_ids), sampling.max_new_tokens, runner.max_positions)
        sampler = Sampler(sampling, prompt.token_ids, runner.spec.language.vocab_size)
        self.row = Row(prompt.inputs_embeds, sampler, runner.stop_ids, budget)
        self.text = AnswerText(runner.tokenizer.decode, sampling.stop, prompt.thinking)

    def add_time(self, timings: Timings) -> None:
        """Count the batch's time for this request too, until it is done."""
        if not self.done:
            self.prompt.timings.prefill_ms += timings.prefill_ms
            self.prompt.timings.decode_ms += timings.decode_ms

    def event(self) -> TokenEvent:
        """The event of the row's newest token, or of its being cancelled."""
        cancelled = self.row.finish_reason == "cancelled"
        token_id = None if cancelled else self.row.token_ids[-1]
        thought = text = ""
        if token_id is not None and token_id not in self.row.stop_ids:
            thought, text = self.text.push(token_id)
            if self.text.stopped:
                self.row.finish_reason = "stop"
        if self.row.finish_reason is None:
            return TokenEvent(self.index, token_id, thought, text)
        last = self.text.flush()
        self.done = True
        self.prompt.timings.decode_steps = max(len(self.row.token_ids) - 1, 0)
        answer = self._answer(self.row.finish_reason)
        return TokenEvent(self.index, token_id, thought + last.thought, text + last.answer, answer)

    def _answer(self, finish_reason: FinishReason) -> Answer:
        return Answer(
            thought=self.text.thought,
            text=self.text.text,
            thought_complete=not self.text.in_thought,
            token_ids=tuple(self.row.token_ids),
            finish_reason=finish_reason,
            prompt_tokens=len(self.prompt.token_ids),
            reused_tokens=self.prompt.reused_tokens,
            timings=self.prompt.timings,
        )


def _one_each(sampling: Sampling | Sequence[Sampling], count: int) -> Sequence[Sampling]:
    samplings = [sampling] * count if isinstance(sampling, Sampling) else sampling
    if len(samplings) != count:
        raise UsageError("Give one sampling, or one for each request.", expected=count, found=len(samplings))
    return samplings


def _require_finite(array: np.ndarray, stage: str) -> None:
    if not np.isfinite(array).all():
        raise GraphError(
            f"The {stage} graph gives numbers that are not finite.",
            where=stage,
            expected="finite numbers",
            found=f"{int((~np.isfinite(array)).sum())} of {array.size} are NaN or infinite",
            fix="run `r1v-export check` to find the first bad boundary, or build with --precision fp32",
        )
