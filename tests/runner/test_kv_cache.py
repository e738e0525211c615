from __future__ import annotations

import threading

import numpy as np
import pytest
import torch

from r1v_export.errors import InputError
from r1v_export.reference.language import CacheStep, rotary_tables
from r1v_export.runner import kv_cache
from r1v_export.runner.kv_cache import KVCache, embed_chosen, new_token_budget, plan_capacity, prefill
from tests.runner.conftest import IMAGE_TOKEN

PROMPTS = [[7, 8, 9], list(range(20, 60)), [100], list(range(200, 217))]


def embed(engine, tokens) -> np.ndarray:
    return embed_chosen(engine, np.array([tokens], dtype=np.int64))


def whole_logits(engine, tokens) -> np.ndarray:
    """The plain way: the whole text through the model at once; logits [V] after its last token."""
    language_model = engine.model.language_model
    step = CacheStep(torch.arange(len(tokens))[None], None, None)
    embeds = torch.from_numpy(embed(engine, tokens))
    logits, _ = language_model(embeds, rotary_tables(language_model.spec, 256), step, None)
    return logits[0, -1].numpy()


def assert_holds(engine, cache: KVCache, row: int, tokens) -> None:
    """A row holds these tokens: one more gives the logits of the whole text."""
    assert cache.lengths_B[row] == len(tokens)
    logits_1V = cache.append(embed(engine, [5]), np.array([1]), row)
    np.testing.assert_allclose(logits_1V[0], whole_logits(engine, [*tokens, 5]), atol=2e-4)
    cache.truncate(row, len(tokens))


def filled(engine, rows: int = 4, capacity: int = 64) -> KVCache:
    cache = KVCache(engine.decoder(rows, capacity))
    for row, prompt in enumerate(PROMPTS[:rows]):
        cache.append(embed(engine, prompt), np.array([len(prompt)]), row)
    return cache


def test_an_image_token_that_the_model_chose_has_the_embedding_of_the_table(engine):
    chosen = embed_chosen(engine, np.array([[IMAGE_TOKEN]]))
    table = engine.model.language_model.model.embed_tokens.weight.detach().numpy()
    np.testing.assert_array_equal(chosen[0, 0], table[IMAGE_TOKEN])


def test_prompts_of_different_lengths_are_prefilled_together_in_chunks(engine, monkeypatch):
    monkeypatch.setattr(kv_cache, "PREFILL_CHUNK", 16)
    cache = KVCache(engine.decoder(4, 64))
    logits_BV = prefill(cache, [embed(engine, prompt)[0] for prompt in PROMPTS], threading.Event())
    for row, prompt in enumerate(PROMPTS):
        np.testing.assert_allclose(logits_BV[row], whole_logits(engine, prompt), atol=2e-4)
        assert_holds(engine, cache, row, prompt)


def test_a_prompt_on_its_own_row_leaves_the_others_as_they_are(engine):
    cache = filled(engine)
    for row, prompt in enumerate(PROMPTS):
        assert_holds(engine, cache, row, prompt)


def test_the_first_rows_go_on_as_one_batch(engine):
    cache = filled(engine)
    logits_BV = cache.append(np.concatenate([embed(engine, [6]), embed(engine, [7])]), np.array([1, 1]))
    for row, token in ((0, 6), (1, 7)):
        np.testing.assert_allclose(logits_BV[row], whole_logits(engine, [*PROMPTS[row], token]), atol=2e-4)
    assert cache.lengths_B.tolist() == [4, 41, 1, 17]
    assert_holds(engine, cache, 3, PROMPTS[3])


def test_rows_are_exchanged_and_copied_with_all_they_hold(engine):
    cache = filled(engine)
    cache.swap_rows(0, 1)
    assert_holds(engine, cache, 0, PROMPTS[1])
    assert_holds(engine, cache, 1, PROMPTS[0])
    cache.copy_row(0, 2, 20)
    assert_holds(engine, cache, 2, PROMPTS[1][:20])
    assert_holds(engine, cache, 3, PROMPTS[3])


@pytest.mark.parametrize(("rows", "capacity"), [(4, 128), (6, 64), (2, 64), (3, 44), (8, 96)])
def test_a_cache_that_changes_its_size_keeps_what_still_has_a_place(engine, rows, capacity):
    cache = filled(engine)
    cache.resize(rows, capacity)
    assert (cache.decoder.batch, cache.decoder.capacity) == (rows, capacity)
    for row, prompt in enumerate(PROMPTS[:rows]):
        assert_holds(engine, cache, row, prompt)
    assert cache.lengths_B[4:].tolist() == [0] * (rows - 4)


def test_tokens_beyond_a_smaller_capacity_are_forgotten(engine):
    cache = filled(engine)
    cache.resize(4, 16)
    assert cache.lengths_B.tolist() == [3, 16, 1, 16]
    cache.truncate(1, 15)
    assert_holds(engine, cache, 1, PROMPTS[1][:15])


def test_a_prompt_that_does_not_fit_in_the_cache_is_an_input_error(engine):
    with pytest.raises(InputError, match="at most 32 tokens"):
        filled(engine, 2, capacity=32)


def test_a_truncated_cache_continues_as_if_the_rest_had_never_been(engine):
    cache = filled(engine)
    cache.truncate(1, 20)
    cache.append(embed(engine, PROMPTS[3]), np.array([len(PROMPTS[3])]), 1)
    assert_holds(engine, cache, 1, PROMPTS[1][:20] + PROMPTS[3])


def test_capacity_is_rounded_up_within_the_models_positions():
    assert [plan_capacity(tokens, 1000) for tokens in (1, 64, 65, 999)] == [64, 64, 128, 1000]


def test_the_token_budget_ends_with_the_models_positions():
    assert new_token_budget(100, 50, 1024) == 50
    assert new_token_budget(1000, 50, 1024) == 24
    with pytest.raises(InputError, match="fewer than 1024"):
        new_token_budget(1024, 50, 1024)
