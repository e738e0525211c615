"""A request, and the tokens of its prompt: all that can be said of it without an engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from r1v_export.errors import InputError
from r1v_export.processing.pipeline_document import document_template
from r1v_export.processing.prompt import Turn, encode, require_tokenizable
from r1v_export.processing.tiling import tile_count
from r1v_export.processing.tokenizer import Tokenizer
from r1v_export.runner.kv_cache import new_token_budget
from r1v_export.serialized.pipeline import PipelineDocument

if TYPE_CHECKING:
    from PIL import Image


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


class PromptEncoder:
    """Makes tokens of requests.

    Args:
        tokenizer: the checkpoint's.
        pipeline: the bundle's `pipeline.json`, or `describe_pipeline` of a checkpoint.
        max_positions: tokens of a prompt and its answer, at most.
    """

    def __init__(self, tokenizer: Tokenizer, pipeline: PipelineDocument, max_positions: int) -> None:
        self.tokenizer, self.pipeline, self.max_positions = tokenizer, pipeline, max_positions
        self.template, self.tiling = document_template(pipeline), pipeline.tiling.spec
        self.image_policy = pipeline.image_policy

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
