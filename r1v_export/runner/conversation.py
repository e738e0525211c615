"""A conversation of several turns that computes only what is new in each."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from r1v_export.generation import Sampling
from r1v_export.processing.generation_config import default_sampling
from r1v_export.processing.prompt import Turn
from r1v_export.runner.answer import CANCELLED_BEFORE_START, TokenEvent
from r1v_export.runner.base import BaseRunner
from r1v_export.runner.prompt_encoder import Request

if TYPE_CHECKING:
    from PIL import Image

IMAGE_CACHE_BYTES = 1 << 30
"""Of the embeddings of a conversation's images; beyond, they are encoded again."""


class Conversation:
    """Turns with one user, who may show further images in any of them.

    Each turn is a request for the whole conversation, which takes the row that the turn before it left in the cache, as
    far as the tokens are the same: templates drop past reasoning, so that is usually up to where the last answer began.
    A library that decodes by itself finds in its own cache what it keeps there. An image is encoded once.

    Args:
        runner: answers the turns.
        system: a system message in place of the template's own.
        think: let the model think before each answer, if its template knows how.
    """

    def __init__(self, runner: BaseRunner, system: str | None = None, think: bool = True) -> None:
        self.runner, self.think = runner, think
        self.turns: tuple[Turn, ...] = () if system is None else (Turn("system", system),)
        self.images: tuple[Image.Image, ...] = ()
        self.batch = runner.open_batch(1, keep_prefixes=True, draft_tokens=runner.draft_tokens)
        self._encoder = runner.image_encoder(IMAGE_CACHE_BYTES)

    def ask(
        self,
        text: str,
        images: Sequence[Image.Image] = (),
        sampling: Sampling | None = None,
        cancel: threading.Event | None = None,
    ) -> Iterator[TokenEvent]:
        """Answer the next turn, as `BaseRunner.generate` does for a single request.

        The turn becomes part of the conversation with its last event, also if it was cancelled while it was answered.

        Raises:
            InputError: the turn cannot be used; the conversation then is as before.
        """
        sampling = sampling or default_sampling(self.runner.generation_config)
        request = Request((*self.turns, Turn("user", text, images=len(images))), (*self.images, *images), self.think)
        for event in self.runner.drive(self.batch, self._encoder, [request], [sampling], cancel or threading.Event()):
            if event.answer is not None and event.answer is not CANCELLED_BEFORE_START:
                self.turns = (*request.turns, Turn("assistant", event.answer.text))
                self.images = request.images
            yield event
