"""A conversation of several turns that computes only what is new in each."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from r1v_export.generation import Sampling
from r1v_export.processing.generation_config import default_sampling
from r1v_export.processing.preprocess import pixel_values
from r1v_export.processing.prompt import Turn
from r1v_export.runner.answer import CANCELLED_BEFORE_START, Timings, TokenEvent
from r1v_export.runner.base import CancelledError, log_prompt
from r1v_export.runner.engine_runner import EngineRunner, Prompt
from r1v_export.runner.kv_cache import KVCache, plan_capacity


class _EncodedImage(NamedTuple):
    """An encoded image: its number of tiles and their embeddings [N, hidden]."""

    tiles: int
    embeds: np.ndarray


class Conversation:
    """Turns with one user, who may show further images in any of them.

    The key-value cache is kept between turns. Each turn writes the whole conversation anew as tokens, takes what the
    cache holds as far as the tokens are the same, and computes the rest: templates drop past reasoning, so the cache is
    usually good up to where the last answer began. An image is encoded once.

    Args:
        runner: answers the turns.
        system: a system message in place of the template's own.
        think: let the model think before each answer, if its template knows how.
    """

    def __init__(self, runner: EngineRunner, system: str | None = None, think: bool = True) -> None:
        self.runner, self.think = runner, think
        self.turns: tuple[Turn, ...] = () if system is None else (Turn("system", system),)
        self._images: list[_EncodedImage] = []
        self._cache: KVCache | None = None
        self._cached_ids: list[int] = []

    def ask(
        self,
        text: str,
        images: Sequence[Image.Image] = (),
        sampling: Sampling | None = None,
        cancel: threading.Event | None = None,
    ) -> Iterator[TokenEvent]:
        """Answer the next turn, as `EngineRunner.generate` does for a single request.

        The turn becomes part of the conversation with its last event, also if it was cancelled while it was answered.

        Raises:
            InputError: the turn cannot be used; the conversation then is as before.
        """
        sampling, cancel = sampling or default_sampling(self.runner.generation_config), cancel or threading.Event()
        turns = (*self.turns, Turn("user", text, images=len(images)))
        timings = Timings()
        try:
            encoded = [*self._images, *self._encode(images, timings, cancel)]
        except CancelledError:
            yield TokenEvent(0, None, "", "", CANCELLED_BEFORE_START)
            return
        token_ids = self.runner.encode(turns, [image.tiles for image in encoded], self.think)
        cache = self._reserve(len(token_ids), sampling)
        prompt = self._prompt(token_ids, encoded, timings)
        log_prompt(len(token_ids), [image.tiles for image in encoded], prompt.reused_tokens)
        cache.truncate(0, prompt.reused_tokens)
        self._cached_ids = token_ids[: prompt.reused_tokens]
        for event in self.runner.decode([prompt], [sampling], cache, [0], cancel):
            if event.answer is not None:
                self.turns = (*turns, Turn("assistant", event.answer.text))
                self._images = encoded
                # The last token was chosen, but not fed to the decoder.
                held = [*prompt.token_ids, *event.answer.token_ids]
                self._cached_ids = held[: int(cache.lengths_B[0])]
            yield event

    def _encode(
        self, images: Sequence[Image.Image], timings: Timings, cancel: threading.Event
    ) -> Iterator[_EncodedImage]:
        for image in images:
            with timings.measure("preprocess"):
                pixels_T3SS, (tiles,) = pixel_values([image], self.runner.tiling, self.runner.image_policy)
            yield _EncodedImage(tiles, self.runner.image_embeds(pixels_T3SS, timings, cancel))

    def _reserve(self, prompt_tokens: int, sampling: Sampling) -> KVCache:
        """The cache, if prompt and answer fit; else a new, empty one with room for further turns."""
        runner = self.runner
        needed = runner.tokens_needed(prompt_tokens, sampling)
        if self._cache is None or self._cache.decoder.capacity < needed:
            capacity = plan_capacity(min(2 * needed, runner.max_positions), runner.max_positions)
            self._cache, self._cached_ids = KVCache(runner.engine.decoder(1, capacity)), []
        return self._cache

    def _prompt(self, token_ids: list[int], images: Sequence[_EncodedImage], timings: Timings) -> Prompt:
        """The conversation, with the embeddings of the tokens that the cache does not hold."""
        runner = self.runner
        # At least one token must go through the decoder, for its logits.
        reused = min(_common_prefix(self._cached_ids, token_ids), len(token_ids) - 1)
        reused_images = token_ids[:reused].count(runner.pipeline.image_token_id)
        no_images = np.zeros((0, runner.hidden), dtype=np.float32)
        embeds_NE = np.concatenate([no_images, *(image.embeds for image in images)])
        with timings.measure("embed"):
            inputs_embeds_SE = runner.inputs_embeds(token_ids[reused:], embeds_NE[reused_images:])
        return Prompt(token_ids, inputs_embeds_SE, runner.opens_reasoning(self.think), timings, reused)


def _common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens two sequences have in common at their beginning."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
