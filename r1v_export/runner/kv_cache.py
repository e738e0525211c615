"""Which slots of a decoder's cache hold which tokens, and how large a cache to ask for.

Shape letters: B batch, S new tokens, P tokens whose logits are wanted, E hidden size, V vocabulary.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np

from r1v_export.contract import PREFILL_CHUNK, Decoder, DecoderEngine, DecodesOneSequence, Engine
from r1v_export.count import Count
from r1v_export.errors import InputError
from r1v_export.progress import ProgressCallback, ignore_progress

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

    def append(self, inputs_embeds_BSE: np.ndarray, new_B: np.ndarray, first_row: int = 0) -> np.ndarray:
        """Run the decoder over new tokens and keep them; logits [B, V] after each row's last valid token.

        The logits of a row with no valid token mean nothing.

        Args:
            first_row: of the B rows, one after the other, that take part.

        Raises:
            InputError: the tokens do not fit in the cache.
        """
        last_valid_B1 = np.maximum(new_B - 1, 0)[:, None]
        return self._step(inputs_embeds_BSE, new_B, last_valid_B1, first_row)[:, 0]

    def append_scored(self, inputs_embeds_BSE: np.ndarray, new_B: np.ndarray) -> np.ndarray:
        """The same for the first B rows, with logits [B, S, V] after each of their tokens; of padding, those after the
        row's last valid token."""
        index_BS = np.minimum(np.arange(inputs_embeds_BSE.shape[1]), new_B[:, None] - 1)
        return self._step(inputs_embeds_BSE, new_B, index_BS, first_row=0)

    def append_ragged(
        self, inputs_embeds_BSE: np.ndarray, new_B: np.ndarray, logits_index_BP: np.ndarray
    ) -> np.ndarray:
        """The same for the first B rows, with logits [B, P, V] after some of their tokens, the last valid one among
        them; for decoders with `PrefillLimits.together`: padding takes no slots."""
        start_B = self.lengths_B[: len(new_B)]
        self._require_room(*max(zip(start_B.tolist(), new_B.tolist(), strict=True), key=sum))
        return self._run(inputs_embeds_BSE, new_B, logits_index_BP, first_row=0)

    def _step(
        self, inputs_embeds_BSE: np.ndarray, new_B: np.ndarray, logits_index_BP: np.ndarray, first_row: int
    ) -> np.ndarray:
        rows = slice(first_row, first_row + len(inputs_embeds_BSE))
        self._require_room(int(self.lengths_B[rows].max()), inputs_embeds_BSE.shape[1])
        return self._run(inputs_embeds_BSE, new_B, logits_index_BP, first_row)

    def _run(
        self, inputs_embeds_BSE: np.ndarray, new_B: np.ndarray, logits_index_BP: np.ndarray, first_row: int
    ) -> np.ndarray:
        rows = slice(first_row, first_row + len(inputs_embeds_BSE))
        seq, start_B = inputs_embeds_BSE.shape[1], self.lengths_B[rows]
        position_ids_BS = start_B[:, None] + np.arange(seq)
        logits_BPV = self.decoder.step(
            inputs_embeds_BSE, position_ids_BS, start_B, start_B + seq, logits_index_BP, first_row
        )
        self.lengths_B[rows] = start_B + new_B
        return logits_BPV

    def _require_room(self, used: int, new: int) -> None:
        if used + new > self.decoder.capacity:
            raise InputError(
                "The key-value cache is full.",
                where="decoder",
                expected=f"at most {Count(self.decoder.capacity, 'token')}",
                found=f"{Count(used, 'token')} and {Count(new, 'new one')}",
                fix="use a shorter prompt or fewer new tokens",
            )

    def truncate(self, row: int, length: int) -> None:
        """Forget a row's tokens from `length` on; their slots are overwritten by the next ones."""
        self.lengths_B[row] = min(length, self.lengths_B[row])

    def copy_row(self, source: int, target: int, length: int) -> None:
        """Let `target` hold the first `length` tokens of `source`, and no others."""
        self.decoder.copy_row(source, target, length)
        self.lengths_B[target] = length

    def swap_rows(self, a: int, b: int) -> None:
        """Exchange what two rows hold."""
        self.decoder.swap_rows(a, b, int(max(self.lengths_B[a], self.lengths_B[b])))
        self.lengths_B[[a, b]] = self.lengths_B[[b, a]]

    def resize(self, rows: int, capacity: int) -> None:
        """Change the number of rows, and of slots of each; tokens that still have a slot stay."""
        kept = min(rows, len(self.lengths_B))
        lengths_B = np.zeros(rows, dtype=np.int64)
        lengths_B[:kept] = np.minimum(self.lengths_B[:kept], capacity)
        self.decoder.resize(rows, capacity, lengths_B)
        self.lengths_B = lengths_B


def open_cache(engine: DecoderEngine, rows: int, capacity: int, *, one_sequence: bool = False) -> KVCache:
    """A decoder with an empty cache.

    Args:
        one_sequence: of one row, without drafts: engines may have a faster decoder for that.
    """
    if one_sequence and rows == 1 and isinstance(engine, DecodesOneSequence):
        return KVCache(engine.one_sequence_decoder(capacity))
    return KVCache(engine.decoder(rows, capacity))


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
            expected=f"fewer than {Count(max_positions, 'token')}",
            found=str(Count(prompt_tokens, "token")),
            fix="use fewer or smaller images, fewer tiles per image, or a shorter text",
        )
    return min(max_new_tokens, max_positions - prompt_tokens)


def embed_chosen(engine: Engine, ids_BS: np.ndarray) -> np.ndarray:
    """Embeddings [B, S, E] of tokens that a model chose, ids [B, S] int64.

    Without rows of images, an <IMG_CONTEXT> that it chose has the embedding of the table, as in transformers.
    """
    return engine.embed(ids_BS, np.zeros((0, engine.sizes.hidden), dtype=np.float32))


def prefill(
    cache: KVCache,
    prompts_SE: Sequence[np.ndarray],
    cancel: threading.Event,
    on_progress: ProgressCallback = ignore_progress,
) -> np.ndarray:
    """Put prompts of different lengths into the cache; logits [B, V] after the last token of each.

    Rows are padded on the right to the longest. Stops early, with logits that mean nothing, once `cancel` is set.

    Args:
        on_progress: called with the tokens of the longest prompt that are done.
    """
    lengths_B = np.array([len(prompt) for prompt in prompts_SE], dtype=np.int64)
    logits_BV = np.empty((0, 0), dtype=np.float32)
    longest = int(lengths_B.max())
    for start in range(0, longest, PREFILL_CHUNK):
        if cancel.is_set():
            break
        chunks = [prompt[start : start + PREFILL_CHUNK] for prompt in prompts_SE]
        new_B = np.array([len(chunk) for chunk in chunks], dtype=np.int64)
        latest_BV = cache.append(pad_right(chunks), new_B)
        # A row that ended in an earlier chunk keeps the logits it had there.
        logits_BV = latest_BV if logits_BV.size == 0 else np.where(new_B[:, None] > 0, latest_BV, logits_BV)
        on_progress(min(start + PREFILL_CHUNK, longest), longest)
    return logits_BV


def pad_right(rows_SE: Sequence[np.ndarray]) -> np.ndarray:
    """Rows [B, S, E] of rows [S, E] of different lengths, with zeros behind them."""
    longest = max(len(row) for row in rows_SE)
    padded_BSE = np.zeros((len(rows_SE), longest, rows_SE[0].shape[1]), dtype=np.float32)
    for padded_SE, row_SE in zip(padded_BSE, rows_SE, strict=True):
        padded_SE[: len(row_SE)] = row_SE
    return padded_BSE
