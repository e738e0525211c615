"""An engine in a few lines of numpy whose next token is a function of everything that its row of the cache holds.

A row that is moved, overwritten, padded or cut wrongly gives another token at once, and a step takes microseconds.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from r1v_export.contract import CacheLimits, PrefillLimits, Sizes

VOCAB, IMAGE_TOKEN = 300, 260


def next_token(held: Sequence[float]) -> int:
    """The token that follows a row which holds these values."""
    weights = np.arange(1, len(held) + 1) * 7 + 3
    return int((weights * np.asarray(held)).sum() * 31 + len(held)) % 256


def answer(prompt: Sequence[int], count: int) -> list[int]:
    """The greedy answer to a prompt without images."""
    held = [float(token) for token in prompt]
    for _ in range(count):
        held.append(float(next_token(held)))
    return [int(token) for token in held[len(prompt) :]]


class ToyEngine:
    """A `contract.Engine`: a token's embedding is its number, an image token's that of its tile's mean."""

    name = "toy"
    sizes = Sizes(28, 4, 16, 1, VOCAB, 1, 1, 1)

    def __init__(
        self,
        max_rows: int | None = None,
        capacity: int | None = None,
        *,
        together: int = 0,
        least: int = 1,
        short_tokens: int = 0,
    ) -> None:
        prefill = PrefillLimits(together=together, least=least, short_tokens=short_tokens)
        self.limits = CacheLimits(1, max_rows, capacity, prefill=prefill)
        self.opened = 0

    def vision(self, pixel_values: np.ndarray) -> np.ndarray:
        means_T = np.round(pixel_values.mean(axis=(1, 2, 3)) * 100)
        return np.tile(means_T[:, None, None], (1, 4, 16)).astype(np.float32)

    def projector(self, vision_features: np.ndarray) -> np.ndarray:
        return vision_features[:, :, :1]

    def embed(self, input_ids: np.ndarray, image_embeds: np.ndarray) -> np.ndarray:
        embeds = input_ids[..., None].astype(np.float32)
        places = input_ids == IMAGE_TOKEN
        embeds[places] = image_embeds[: places.sum()]
        return embeds

    def decoder(self, batch: int, capacity: int) -> ToyDecoder:
        self.opened += 1
        return (RaggedToyDecoder if self.limits.prefill.together else ToyDecoder)(batch, capacity)

    def cache_limits(self) -> CacheLimits:
        return self.limits


class ToyDecoder:
    """Its cache [batch, capacity] holds what was embedded."""

    def __init__(self, batch: int, capacity: int) -> None:
        self.batch, self.capacity = batch, capacity
        self.cache_BC = np.full((batch, capacity), np.nan)

    def step(self, inputs_embeds, position_ids, cache_write_index, cache_length, logits_index, first_row=0):
        rows, seq = inputs_embeds.shape[:2]
        logits_BPV = np.zeros((*logits_index.shape, VOCAB), np.float32)
        for row in range(rows):
            start = cache_write_index[row]
            assert (position_ids[row] == np.arange(start, start + seq)).all()
            held_C = self.cache_BC[first_row + row]
            held_C[start : start + seq] = inputs_embeds[row, :, 0]
            for position, index in enumerate(logits_index[row]):
                logits_BPV[row, position, next_token(held_C[: start + index + 1])] = 1
        return logits_BPV

    def copy_row(self, source, target, length):
        self.cache_BC[target, :length] = self.cache_BC[source, :length]
        self.cache_BC[target, length:] = np.nan

    def swap_rows(self, a, b, length):
        self.cache_BC[[a, b], :length] = self.cache_BC[[b, a], :length]

    def resize(self, batch, capacity, lengths):
        resized_BC = np.full((batch, capacity), np.nan)
        for row, length in enumerate(lengths[: self.batch]):
            resized_BC[row, :length] = self.cache_BC[row, :length]
        self.batch, self.capacity, self.cache_BC = batch, capacity, resized_BC


class RaggedToyDecoder(ToyDecoder):
    """Of each row takes what is not padding, and notes how many tokens those were."""

    def __init__(self, batch: int, capacity: int) -> None:
        super().__init__(batch, capacity)
        self.steps: list[list[int]] = []

    def step(self, inputs_embeds, position_ids, cache_write_index, cache_length, logits_index, first_row=0):
        new_B = logits_index.max(axis=1) + 1
        self.steps.append(new_B.tolist())
        logits = []
        for row, new in enumerate(new_B):
            here = slice(row, row + 1)
            assert cache_write_index[row] + new <= self.capacity
            logits.append(
                super().step(
                    inputs_embeds[here, :new],
                    position_ids[here, :new],
                    cache_write_index[here],
                    cache_write_index[here] + new,
                    logits_index[here],
                    first_row + row,
                )
            )
        return np.concatenate(logits)
