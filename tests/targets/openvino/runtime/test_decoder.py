from __future__ import annotations

import numpy as np
import pytest

from r1v_export.runner.kv_cache import KVCache
from tests.targets.onnxruntime.runtime.test_engine import assert_close, moving_rows, normal, prefill_into, prompts, walk
from tests.targets.openvino.conftest import NEEDS_OPENVINO

pytestmark = NEEDS_OPENVINO
DECODER = "r1v_export.targets.openvino.runtime.decoder"
"""Not imported here: it needs OpenVINO."""


@pytest.mark.parametrize("lengths", [[12], [12, 3, 7], [1, 9]])
def test_ragged_batches_follow_the_reference_and_onnx_runtime(openvino_built, lengths):
    built = openvino_built.built
    prompts_SE = prompts(built.spec, lengths)
    steps = [normal(len(lengths), 1, built.spec.language.hidden_size) for _ in range(6)]
    ours = walk(openvino_built.open(), prompts_SE, steps)
    for engine in (built.reference, built.open_standard()):
        for found, wanted in zip(ours, walk(engine, prompts_SE, steps), strict=True):
            assert_close(found, wanted)


@pytest.mark.parametrize(("together", "at_once", "slots"), [(1, 512, 256), (1, 5, 4), (16, 5, 1), (1, 1, 3)])
def test_however_prompts_are_cut_and_the_cache_grows_the_numbers_stay(of_r1v, monkeypatch, together, at_once, slots):
    monkeypatch.setattr(f"{DECODER}.TOGETHER", together)
    monkeypatch.setattr(f"{DECODER}.TOKENS_AT_ONCE", at_once)
    monkeypatch.setattr(f"{DECODER}.SLOTS", slots)
    prompts_SE = prompts(of_r1v.spec, [12, 3, 7])
    steps = [normal(3, 1, of_r1v.spec.language.hidden_size) for _ in range(6)]
    expected = walk(of_r1v.built.reference, prompts_SE, steps)
    for found, wanted in zip(walk(of_r1v.open(), prompts_SE, steps), expected, strict=True):
        assert_close(found, wanted)


@pytest.mark.parametrize("at_once", [512, 2])
def test_logits_of_several_tokens_in_a_step_are_those_of_one_token_at_a_time(openvino_built, monkeypatch, at_once):
    monkeypatch.setattr(f"{DECODER}.TOGETHER", 2)
    monkeypatch.setattr(f"{DECODER}.TOKENS_AT_ONCE", at_once)
    hidden, written = openvino_built.spec.language.hidden_size, np.array([6, 4])
    prompt, tokens = normal(2, 6, hidden), normal(2, 3, hidden)
    results = []
    for engine in (openvino_built.open(), openvino_built.built.reference):
        decoder = engine.decoder(2, 16)
        decoder.step(prompt, np.tile(np.arange(6), (2, 1)), 0 * written, 0 * written + 6, written[:, None] - 1)
        slots, wanted = written[:, None] + np.arange(3), np.array([[2, 0, 1], [1, 1, 2]])
        results.append(decoder.step(tokens, slots, written, written + 3, wanted))
    assert_close(*results)


@pytest.mark.parametrize("slots", [256, 4])
def test_rows_that_move_hold_what_the_references_do(openvino_built, monkeypatch, slots):
    monkeypatch.setattr(f"{DECODER}.SLOTS", slots)
    built = openvino_built.built
    prompts_SE, token = prompts(built.spec, [7, 5, 6]), normal(1, 1, built.spec.language.hidden_size)
    expected = moving_rows(built.reference, prompts_SE, token)
    for found, wanted in zip(moving_rows(openvino_built.open(), prompts_SE, token), expected, strict=True):
        assert_close(found, wanted)


def test_a_step_writes_its_own_slots_and_no_others(of_r1v):
    decoder = of_r1v.open().decoder(2, 16)
    cache = KVCache(decoder)
    prefill_into(cache, prompts(of_r1v.spec, [5, 3]))
    before = [array.copy() for array in decoder._cache.values()]
    cache.append(normal(2, 1, of_r1v.spec.language.hidden_size), np.array([1, 1]))
    for old, new in zip(before, decoder._cache.values(), strict=True):
        assert [sorted({slot for _, slot, _ in np.argwhere(row)}) for row in new != old] == [[5], [3]]


def test_the_cache_has_no_more_slots_than_rows_need_so_far(of_r1v, monkeypatch):
    monkeypatch.setattr(f"{DECODER}.SLOTS", 4)
    decoder = of_r1v.open().decoder(1, 1000)
    cache = KVCache(decoder)
    for length, slots in ((3, 4), (1, 4), (1, 8), (5, 12)):
        cache.append(normal(1, length, of_r1v.spec.language.hidden_size), np.array([length]))
        assert {array.shape[2] for array in decoder._cache.values()} == {slots}


def test_two_decoders_of_one_engine_do_not_share_their_caches(of_r1v):
    engine, (a, b) = of_r1v.open(), prompts(of_r1v.spec, [5, 5])
    first, second, alone = (KVCache(engine.decoder(1, 16)) for _ in range(3))
    for cache, prompt in ((first, a), (second, b), (alone, a)):
        prefill_into(cache, [prompt])
    step, one = normal(1, 1, of_r1v.spec.language.hidden_size), np.array([1])
    np.testing.assert_array_equal(first.append(step, one), alone.append(step, one))


def test_logits_are_the_callers_to_keep(of_r1v):
    cache, one = KVCache(of_r1v.open().decoder(1, 16)), np.array([1])
    first = cache.append(normal(1, 1, of_r1v.spec.language.hidden_size), one)
    kept = first.copy()
    cache.append(normal(1, 1, of_r1v.spec.language.hidden_size), one)
    np.testing.assert_array_equal(first, kept)


def test_an_engine_says_what_its_cache_takes(of_r1v):
    sizes, limits = of_r1v.spec.sizes, of_r1v.open().cache_limits()
    assert limits.slot_bytes == 2 * 4 * sizes.layers * sizes.kv_heads * sizes.head_dim
    cache = of_r1v.open().decoder(2, 8)._cache
    assert sum(array.nbytes for array in cache.values()) == 2 * 8 * limits.slot_bytes
