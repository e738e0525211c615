"""A request whose images are encoded: what decoding begins with.

Shape letters: N tokens of an image, E hidden size.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from r1v_export.count import Count
from r1v_export.errors import InputError
from r1v_export.generation import EncodedImage
from r1v_export.runner.answer import Timings
from r1v_export.runner.image_encoder import ImageJob


@dataclass
class EncodedPrompt:
    """A request on its way to the decoder.

    Attributes:
        token_ids: the whole prompt, an image token for each row of an image.
        images: embeddings of all images [N, E], in order.
        thinking: the prompt has opened reasoning; None for a continuation, which has none.
    """

    token_ids: list[int]
    images: list[EncodedImage]
    thinking: bool | None
    timings: Timings


@dataclass
class OpenPrompt:
    """The same, while its images are being encoded."""

    token_ids: list[int]
    images: list[ImageJob]
    thinking: bool | None
    timings: Timings

    @property
    def done(self) -> bool:
        """Whether all images are encoded, or one cannot be."""
        return all(image.done for image in self.images) or any(image.error for image in self.images)

    def result(self) -> EncodedPrompt:
        """The prompt, once it is done.

        Raises:
            GraphError: an image's numbers are not finite, or a stage failed.
        """
        if errors := [image.error for image in self.images if image.error is not None]:
            raise errors[0]
        for image in {id(image): image for image in self.images}.values():
            self.timings.vision_ms += image.vision_ms
            self.timings.projector_ms += image.projector_ms
        return EncodedPrompt(self.token_ids, [image.result() for image in self.images], self.thinking, self.timings)


class TokenSequence:
    """Tokens of a prompt or of a cache row, with the images that stand among them.

    Two sequences begin alike as far as their tokens are equal and their image tokens are the same images'.
    """

    def __init__(self, token_ids: Sequence[int] = (), images: Sequence[tuple[int, bytes]] = ()) -> None:
        self.ids = array("q", token_ids)
        self.images = list(images)
        """Where each image's tokens begin, and its digest."""

    @classmethod
    def of(cls, prompt: EncodedPrompt, image_token_id: int) -> TokenSequence:
        """The sequence of a prompt.

        Raises:
            InputError: there are not as many image embeddings as image tokens.
        """
        positions = np.flatnonzero(np.array(prompt.token_ids, dtype=np.int64) == image_token_id)
        lengths = [len(image.embeds) for image in prompt.images]
        if len(positions) != sum(lengths):
            raise InputError(
                "The prompt's image tokens do not match the images.",
                where="embed",
                expected=f"{Count(sum(lengths), 'image token')}, one for each image embedding",
                found=len(positions),
                fix="check that image_token_id is the tokenizer's <IMG_CONTEXT>",
            )
        starts = np.cumsum([0, *lengths])[:-1]
        images = [(int(positions[start]), image.digest) for start, image in zip(starts, prompt.images, strict=True)]
        return cls(prompt.token_ids, images)

    def __len__(self) -> int:
        return len(self.ids)

    def common_prefix(self, other: TokenSequence) -> int:
        """How many tokens two sequences have in common at their beginning."""
        length = min(len(self.ids), len(other.ids))
        if length == 0:
            return 0
        mine, theirs = (np.frombuffer(ids, dtype=np.int64, count=length) for ids in (self.ids, other.ids))
        different = np.flatnonzero(mine != theirs)
        length = int(different[0]) if len(different) else length
        ours, others = ([image for image in each.images if image[0] < length] for each in (self, other))
        for index in range(max(len(ours), len(others))):
            pair = ours[index : index + 1], others[index : index + 1]
            if pair[0] != pair[1]:
                return min(start for side in pair for start, _ in side)
        return length

    def take(self, other: TokenSequence, stop: int) -> None:
        """Go on with the tokens of another sequence, from this one's length to `stop`."""
        start = len(self.ids)
        self.ids.extend(other.ids[start:stop])
        self.images += [image for image in other.images if start <= image[0] < stop]

    def append(self, token_id: int) -> None:
        """Add a generated token."""
        self.ids.append(token_id)

    def truncate(self, length: int) -> None:
        """Forget the tokens from `length` on."""
        del self.ids[length:]
        self.images = [image for image in self.images if image[0] < length]
