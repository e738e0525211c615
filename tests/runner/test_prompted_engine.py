"""Which tokens of a step go to what computes prompts, and which to the decoder."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest

from r1v_export.runner.kv_cache import KVCache
from r1v_export.runner.prompted_engine import LEAST_TOKENS, PromptedDecoder, PromptedEngine

HIDDEN, VOCAB = 4, 3


@dataclass
class Noting:
    """A decoder and a prompt engine, which note what they are asked for."""

    batch: int = 3
    capacity: int = 256
    steps: list[tuple[int, int, list[int], list[int], list[list[int]]]] = field(default_factory=list)
    filled: list[tuple[int, int, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.cache = [np.zeros((self.batch, 1, self.capacity, 1), np.float32)]

    def cache_tensors(self) -> list[np.ndarray]:
        return self.cache

    def step(self, inputs_embeds, position_ids, cache_write_index, cache_length, logits_index, first_row=0):
        rows, seq = inputs_embeds.shape[:2]
        assert position_ids.shape == (rows, seq)
        assert (position_ids[:, 0] == cache_write_index).all()
        assert (cache_length == cache_write_index + seq).all()
        self.steps.append((first_row, rows, cache_write_index.tolist(), [seq] * rows, logits_index.tolist()))
        # The logits say whose they are: the token's own number, which is its embedding.
        tokens = np.take_along_axis(inputs_embeds[..., 0], logits_index, axis=1)
        return np.repeat(tokens[..., None], VOCAB, axis=2)

    def copy_row(self, *_) -> None: ...
    def swap_rows(self, *_) -> None: ...

    def resize(self, batch, capacity, lengths) -> None:
        self.batch, self.capacity = batch, capacity

    def fill(self, inputs_embeds, start, cache) -> None:
        assert [each.shape for each in cache] == [(1, self.capacity, 1)]
        cache[0][0, start : start + len(inputs_embeds), 0] = inputs_embeds[:, 0]
        self.filled.append((start, len(inputs_embeds), int(inputs_embeds[0, 0])))


@pytest.fixture
def noting() -> Noting:
    return Noting()


def numbered(rows: int, seq: int) -> np.ndarray:
    """Embeddings of tokens 1, 2, ... of each row, of a row the hundreds."""
    tokens = 1 + np.arange(seq) + 100 * np.arange(rows)[:, None]
    return np.repeat(tokens[..., None], HIDDEN, axis=2).astype(np.float32)


def test_all_but_the_last_token_of_a_prompt_are_filled_in(noting):
    cache = KVCache(PromptedDecoder(noting, noting))
    logits = cache.append(numbered(1, 40), np.array([40]), first_row=1)
    assert noting.filled == [(0, 39, 1)]
    assert noting.steps == [(1, 1, [39], [1], [[0]])]
    assert logits.tolist() == [[40.0] * VOCAB]
    assert noting.cache[0][1, 0, :39, 0].tolist() == [*range(1, 40)]
    assert not noting.cache[0][[0, 2]].any()


def test_the_next_part_of_a_prompt_goes_on_behind_the_first(noting):
    cache = KVCache(PromptedDecoder(noting, noting))
    for _ in range(2):
        cache.append(numbered(1, 30), np.array([30]))
    assert noting.filled == [(0, 29, 1), (30, 29, 1)]
    assert [write for _, _, write, _, _ in noting.steps] == [[29], [59]]


def test_each_row_of_several_is_as_long_as_it_is(noting):
    cache = KVCache(PromptedDecoder(noting, noting))
    new = np.array([40, LEAST_TOKENS, 25])
    logits = cache.append(numbered(3, 40), new)
    assert noting.filled == [(0, 39, 1), (0, 24, 201)], "the second row's tokens before its last are too few"
    assert [(row, seq) for row, _, _, seq, _ in noting.steps] == [(0, [1]), (1, [LEAST_TOKENS]), (2, [1])]
    assert logits[:, 0].tolist() == [40.0, 100.0 + LEAST_TOKENS, 225.0]


@pytest.mark.parametrize("seq", [1, 2, LEAST_TOKENS])
def test_steps_of_few_tokens_are_the_decoders_as_they_are(noting, seq):
    KVCache(PromptedDecoder(noting, noting)).append(numbered(3, seq), np.array([seq] * 3))
    assert not noting.filled
    assert noting.steps == [(0, 3, [0] * 3, [seq] * 3, [[seq - 1]] * 3)]


def test_drafts_with_logits_of_each_token_are_the_decoders(noting):
    KVCache(PromptedDecoder(noting, noting)).append_scored(numbered(1, 40), np.array([40]))
    assert not noting.filled


def test_the_cache_that_grew_is_written(noting):
    decoder = PromptedDecoder(noting, noting)
    cache = KVCache(decoder)
    cache.resize(4, 300)
    assert (decoder.batch, decoder.capacity) == (4, 300)
    noting.cache = [np.zeros((4, 1, 300, 1), np.float32)]
    cache.append(numbered(1, 280), np.array([280]), first_row=3)
    assert noting.cache[0][3, 0, 278, 0] == 279


def test_where_nothing_opens_the_engines_own_decoder_is_used(engine):
    alone = PromptedEngine(engine, lambda: None, "both")
    assert type(alone.decoder(1, 8)) is type(engine.decoder(1, 8))
    assert alone.cache_limits() == engine.cache_limits()
