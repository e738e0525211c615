"""Which slots of a decoder's cache hold which tokens, and how large a cache to ask for.

Shape letters: B batch, S new tokens, E hidden size, V vocabulary.
"""

from __future__ import annotations

import numpy as np

from r1v_export.contract import Decoder
from r1v_export.errors import InputError

CAPACITY_STEP = 64
"""Capacities are rounded up to a multiple of this, so that engines meet few different shapes."""


class KVCache:
    """A decoder and, for each row of its batch, how many tokens its cache holds.

    Rows are independent. In one step every row is given S new tokens, of which the first `new[b]` are valid and the
    rest padding: padding lands behind the row's valid tokens and is overwritten by the tokens that come next.
    """

    def __init__(self, decoder: Decoder) -> None:
        self.decoder = decoder
        self.lengths_B = np.zeros(decoder.batch, dtype=np.int64)

    def append(self, inputs_embeds_BSE: np.ndarray, new_B: np.ndarray) -> np.ndarray:
        """Run the decoder over new tokens and keep them; logits [B, V] after each row's last valid token.

        The logits of a row with no valid token mean nothing.

        Raises:
            InputError: the tokens do not fit in the cache.
        """
        seq = inputs_embeds_BSE.shape[1]
        fullest = int(self.lengths_B.max())
        if fullest + seq > self.decoder.capacity:
            raise InputError(
                "The key-value cache is full.",
                where="decoder",
                expected=f"at most {self.decoder.capacity} tokens",
                found=f"{fullest} tokens and {seq} new ones",
                fix="use a shorter prompt or fewer new tokens",
            )
        start_B = self.lengths_B
        position_ids_BS = start_B[:, None] + np.arange(seq)
        last_valid_B1 = np.maximum(new_B - 1, 0)[:, None]
        logits_B1V = self.decoder.step(inputs_embeds_BSE, position_ids_BS, start_B, start_B + seq, last_valid_B1)
        self.lengths_B = start_B + new_B
        return logits_B1V[:, 0]

    def truncate(self, row: int, length: int) -> None:
        """Forget a row's tokens from `length` on; their slots are overwritten by the next ones."""
        self.lengths_B[row] = min(length, self.lengths_B[row])


def plan_capacity(tokens: int, max_positions: int) -> int:
    """Cache slots to ask for to hold `tokens` tokens, of which there are at most `max_positions`."""
    rounded = -(-tokens // CAPACITY_STEP) * CAPACITY_STEP
    return min(rounded, max_positions)


def new_token_budget(prompt_tokens: int, max_new_tokens: int, max_positions: int) -> int:
    """How many tokens may follow a prompt: what is asked for, as far as the model has positions.

    Raises:
        InputError: the prompt alone takes all positions.
    """
    if prompt_tokens >= max_positions:
        raise InputError(
            "The prompt is too long for this model.",
            where="prompt",
            expected=f"fewer than {max_positions} tokens",
            found=f"{prompt_tokens} tokens",
            fix="use fewer or smaller images, fewer tiles per image, or a shorter text",
        )
    return min(max_new_tokens, max_positions - prompt_tokens)
