"""A prompt with images as TensorRT-LLM takes it: ids beyond the vocabulary are rows of a table of embeddings.

    token ids   151644 872 198 151665 | 152064 152065 ... 152319 | 151666 ...
    table                               row 0   row 1  ... row 255
    extra ids   0      0   0   0      | h      h       ...  h    | 0      ...     h: of the image

Blocks of the key-value cache are found again by their ids. Those of two images are the same numbers, so each carries
its image's hash next to them: without it the second image would be answered from the first one's cache.
Shape letters: N rows of the table, E hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from r1v_export.count import Count
from r1v_export.errors import InputError
from r1v_export.generation import EncodedImage


def extra_id(image: EncodedImage) -> int:
    """64 bits of an image's digest; never 0, which is text's."""
    return int.from_bytes(image.digest[:8], "little") or 1


@dataclass(frozen=True)
class TablePrompt:
    """A prompt whose image tokens are ids of rows in a table of embeddings.

    Attributes:
        token_ids: below the vocabulary's size a token, from there on a row of the table.
        extra_ids: one for each token id.
        table: [N, E] float32; rows of all images, in order.
    """

    token_ids: list[int]
    extra_ids: list[int]
    table: np.ndarray

    @classmethod
    def of(
        cls, token_ids: Sequence[int], images: Sequence[EncodedImage], image_token_id: int, vocab_size: int, hidden: int
    ) -> TablePrompt:
        """Build the table and replace each image token by the id of its row.

        Args:
            token_ids: the prompt, an image token for every row of an image.

        Raises:
            InputError: there are more or fewer image tokens than rows, or an id is out of range.
        """
        rows = sum(len(image.embeds) for image in images)
        places = sum(token == image_token_id for token in token_ids)
        if rows != places:
            raise InputError(
                "The number of image tokens in the prompt differs from the number of image embeddings.",
                where="prompt",
                expected=str(Count(rows, "image token")),
                found=places,
            )
        wrong = [token for token in token_ids if not 0 <= token < vocab_size]
        if wrong:
            raise InputError(
                "A token id is out of range.", where="prompt", expected=f"0 to {vocab_size - 1}", found=wrong[0]
            )
        extra = (extra_id(image) for image in images for _ in range(len(image.embeds)))
        ids, extra_ids, row = [], [], 0
        for token in token_ids:
            is_image = token == image_token_id
            ids.append(vocab_size + row if is_image else token)
            extra_ids.append(next(extra) if is_image else 0)
            row += is_image
        empty = np.zeros((0, hidden), dtype=np.float32)
        return cls(ids, extra_ids, np.concatenate([empty, *(image.embeds for image in images)]))
