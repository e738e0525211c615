from __future__ import annotations

import threading

import numpy as np
import pytest
import torch

from r1v_export.errors import InputError
from r1v_export.reference.language import CacheStep, rotary_tables
from r1v_export.runner import scheduler
from r1v_export.runner.kv_cache import KVCache, new_token_budget, plan_capacity
from r1v_export.runner.sampling import Sampler, Sampling
from r1v_export.runner.scheduler import SequenceState, generate_rows

NO_STOP: frozenset[int] = frozenset()
PROMPTS = [[7, 8, 9], list(range(20, 60)), [100], list(range(200, 217))]


def embed_tokens(engine):
    """A random model may generate the image token too, hence one row per token."""
    return lambda ids: engine.embed(ids, np.zeros((ids.size, engine.sizes.hidden), dtype=np.float32))


def row(engine, prompt, max_new_tokens=12, stop_ids=NO_STOP, **sampling) -> SequenceState:
    embeds = embed_tokens(engine)(np.array([prompt], dtype=np.int64))[0]
    return SequenceState(embeds, Sampler(Sampling(**sampling), prompt, engine.sizes.vocab), stop_ids, max_new_tokens)


def run(engine, rows, capacity=128, cancel=None):
    cache = KVCache(engine.decoder(len(rows), capacity))
    return list(generate_rows(cache, rows, embed_tokens(engine), cancel))


def greedy_without_cache(engine, prompt, count):
    """The plain way: the whole text through the model again for each token."""
    language_model, ids = engine.model.language_model, list(prompt)
    for _ in range(count):
        embeds = torch.from_numpy(embed_tokens(engine)(np.array([ids], dtype=np.int64)))
        step = CacheStep(torch.arange(len(ids))[None], None, None)
        logits, _ = language_model(embeds, rotary_tables(language_model.spec, 256), step, None)
        ids.append(int(logits[0, -1].argmax()))
    return ids[len(prompt) :]


def test_a_batch_of_different_lengths_gives_each_row_what_it_gets_alone(engine):
    rows = [row(engine, prompt) for prompt in PROMPTS]
    run(engine, rows)
    for prompt, generated in zip(PROMPTS, rows, strict=True):
        assert generated.token_ids == greedy_without_cache(engine, prompt, 12)
        assert generated.finish_reason == "length"
    assert len({tuple(r.token_ids) for r in rows}) == len(rows)


def test_long_prompts_are_prefilled_in_chunks_with_the_same_result(engine, monkeypatch):
    monkeypatch.setattr(scheduler, "PREFILL_CHUNK", 16)
    rows = [row(engine, prompt) for prompt in PROMPTS]
    run(engine, rows, capacity=40 + 12)
    assert [r.token_ids for r in rows] == [greedy_without_cache(engine, prompt, 12) for prompt in PROMPTS]


def test_sampled_rows_do_not_depend_on_their_neighbors(engine):
    settings = {"temperature": 1.3, "top_p": 0.9, "seed": 11, "repetition_penalty": 1.1}
    alone = row(engine, PROMPTS[1], **settings)
    run(engine, [alone])
    together = [row(engine, prompt, **settings) for prompt in PROMPTS]
    run(engine, together)
    assert together[1].token_ids == alone.token_ids


def test_rows_end_by_themselves_at_a_stop_token_or_their_budget(engine):
    expected = greedy_without_cache(engine, PROMPTS[0], 12)
    rows = [
        row(engine, PROMPTS[0], stop_ids=frozenset({expected[4]})),
        row(engine, PROMPTS[0], max_new_tokens=7),
        row(engine, PROMPTS[0]),
    ]
    run(engine, rows)
    assert rows[0].token_ids == expected[: expected.index(expected[4]) + 1]
    assert (rows[1].token_ids, rows[2].token_ids) == (expected[:7], expected)
    assert [r.finish_reason for r in rows] == ["stop", "length", "length"]


def test_a_row_that_the_caller_finished_takes_no_more_tokens(engine):
    rows = [row(engine, PROMPTS[0]), row(engine, PROMPTS[1])]
    cache = KVCache(engine.decoder(2, 128))
    for index in generate_rows(cache, rows, embed_tokens(engine)):
        if index == 0 and len(rows[0].token_ids) == 3:
            rows[0].finish_reason = "stop"
    assert (len(rows[0].token_ids), len(rows[1].token_ids)) == (3, 12)


def test_cancelling_keeps_the_tokens_so_far(engine):
    cancel = threading.Event()
    rows = [row(engine, PROMPTS[0]), row(engine, PROMPTS[1], max_new_tokens=2)]
    cache = KVCache(engine.decoder(2, 128))
    for _ in generate_rows(cache, rows, embed_tokens(engine), cancel):
        if len(rows[0].token_ids) == 5:
            cancel.set()
    assert rows[0].token_ids == greedy_without_cache(engine, PROMPTS[0], 5)
    assert [r.finish_reason for r in rows] == ["cancelled", "length"]


def test_cancelling_before_the_start_runs_nothing(engine):
    cancel = threading.Event()
    cancel.set()
    rows = [row(engine, PROMPTS[0])]
    assert run(engine, rows, cancel=cancel) == []
    assert (rows[0].token_ids, rows[0].finish_reason) == ([], "cancelled")


def test_a_prompt_that_does_not_fit_in_the_cache_is_an_input_error(engine):
    with pytest.raises(InputError, match="at most 32 tokens"):
        run(engine, [row(engine, PROMPTS[1])], capacity=32)


def test_a_truncated_cache_continues_as_if_the_rest_had_never_been(engine):
    prompt, other = PROMPTS[1], PROMPTS[3]
    cache = KVCache(engine.decoder(1, 128))
    for tokens in (prompt[:20] + other, prompt[20:]):
        last = row(engine, tokens)
        list(generate_rows(cache, [last], embed_tokens(engine)))
        cache.truncate(0, 20)
    assert last.token_ids == greedy_without_cache(engine, prompt, 12)


def test_capacity_is_rounded_up_within_the_models_positions():
    assert [plan_capacity(tokens, 1000) for tokens in (1, 64, 65, 999)] == [64, 64, 128, 1000]


def test_the_token_budget_ends_with_the_models_positions():
    assert new_token_budget(100, 50, 1024) == 50
    assert new_token_budget(1000, 50, 1024) == 24
    with pytest.raises(InputError, match="fewer than 1024"):
        new_token_budget(1024, 50, 1024)
