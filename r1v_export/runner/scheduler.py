"""A batch of sequences through one decoder: prefill in chunks, then a token per unfinished row and step.

Shape letters: B batch, S tokens of a prompt, E hidden size, V vocabulary.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from r1v_export.contract import Engine
from r1v_export.generation import FinishReason
from r1v_export.runner.kv_cache import KVCache
from r1v_export.runner.sampling import Sampler

PREFILL_CHUNK = 512
"""Prompt tokens per decoder step: bounds the memory that attention takes on long prompts."""


@dataclass
class SequenceState:
    """One sequence of a batch while it is generated.

    Args:
        inputs_embeds: [S, E] float32, of the prompt tokens that the cache does not hold yet.
        sampler: chooses this row's tokens.
        stop_ids: tokens that end the answer.
        max_new_tokens: most tokens to generate.
    """

    inputs_embeds: np.ndarray
    sampler: Sampler
    stop_ids: frozenset[int]
    max_new_tokens: int
    token_ids: list[int] = field(default_factory=list)
    finish_reason: FinishReason | None = None

    def append_token(self, token_id: int) -> None:
        """Take the next token and notice the end."""
        self.token_ids.append(token_id)
        if token_id in self.stop_ids:
            self.finish_reason = "stop"
        elif len(self.token_ids) >= self.max_new_tokens:
            self.finish_reason = "length"


def generate_rows(
    cache: KVCache,
    rows: Sequence[SequenceState],
    embed_tokens: Callable[[np.ndarray], np.ndarray],
    cancel: threading.Event | None = None,
) -> Iterator[int]:
    """Yield a row's index each time it took a token, until all rows are finished.

    The caller may set a row's `finish_reason` between tokens (a stop string), and `cancel` at any time: it is checked
    before each decoder step, and unfinished rows then end as "cancelled" with the tokens they have.

    Args:
        cache: of a decoder with one row for each of `rows`; may already hold the beginning of the prompts.
        embed_tokens: input ids [B, 1] int64 -> embeddings [B, 1, E].
    """
    cancel = cancel or threading.Event()
    logits_BV = prefill(cache, [row.inputs_embeds for row in rows], cancel)
    while not cancel.is_set():
        for index, row in enumerate(rows):
            if row.finish_reason is None:
                row.append_token(row.sampler.next(logits_BV[index]))
                yield index
        active_B = np.array([row.finish_reason is None for row in rows], dtype=np.int64)
        if not active_B.any():
            return
        if not cancel.is_set():
            # A finished row feeds its last token again, to the same slot each time, and nobody looks.
            last_B1 = np.array([[row.token_ids[-1]] for row in rows], dtype=np.int64)
            logits_BV = cache.append(embed_tokens(last_B1), active_B)
    for row in rows:
        row.finish_reason = row.finish_reason or "cancelled"


def embed_chosen(engine: Engine, ids_B1: np.ndarray) -> np.ndarray:
    """Embeddings [B, 1, E] of tokens that a model chose, ids [B, 1] int64.

    Should it choose <IMG_CONTEXT>, the embed graph takes an image row for it: a row of zeros.
    """
    no_images_BE = np.zeros((ids_B1.size, engine.sizes.hidden), dtype=np.float32)
    return engine.embed(ids_B1, no_images_BE)


def prefill(cache: KVCache, prompts_SE: Sequence[np.ndarray], cancel: threading.Event) -> np.ndarray:
    """Put prompts of different lengths into the cache; logits [B, V] after the last token of each.

    Rows are padded on the right to the longest. Stops early, with logits that mean nothing, once `cancel` is set.
    """
    lengths_B = np.array([len(prompt) for prompt in prompts_SE], dtype=np.int64)
    logits_BV = np.empty((0, 0), dtype=np.float32)
    for start in range(0, int(lengths_B.max()), PREFILL_CHUNK):
        if cancel.is_set():
            break
        chunks = [prompt[start : start + PREFILL_CHUNK] for prompt in prompts_SE]
        new_B = np.array([len(chunk) for chunk in chunks], dtype=np.int64)
        latest_BV = cache.append(_pad_right(chunks), new_B)
        # A row that ended in an earlier chunk keeps the logits it had there.
        logits_BV = latest_BV if start == 0 else np.where(new_B[:, None] > 0, latest_BV, logits_BV)
    return logits_BV


def _pad_right(rows_SE: Sequence[np.ndarray]) -> np.ndarray:
    longest = max(len(row) for row in rows_SE)
    padded_BSE = np.zeros((len(rows_SE), longest, rows_SE[0].shape[1]), dtype=np.float32)
    for padded_SE, row_SE in zip(padded_BSE, rows_SE, strict=True):
        padded_SE[: len(row_SE)] = row_SE
    return padded_BSE
