"""Sessions on plans, compared with PyTorch: a stand-in computes what the plan was built from."""

from __future__ import annotations

import numpy as np
import pytest

from r1v_export import contract
from r1v_export.errors import UsageError
from r1v_export.runner.kv_cache import KVCache
from r1v_export.targets.tensorrt.build.profiles import LOGIT_POSITIONS


@pytest.fixture
def pixels(fp32) -> np.ndarray:
    size = fp32.spec.tiling.tile_size
    return np.random.default_rng(0).standard_normal((5, 3, size, size), dtype=np.float32)


def test_more_tiles_than_the_plan_takes_run_in_several_goes(fp32, stand_in, pixels) -> None:
    expected = fp32.reference.vision(pixels)
    np.testing.assert_allclose(stand_in.engine.vision(pixels), expected, atol=1e-4)


def test_the_projectors_result_comes_with_the_features_that_it_belongs_to(fp32, stand_in, pixels) -> None:
    features = stand_in.engine.vision(pixels)
    expected = fp32.reference.projector(features)
    np.testing.assert_allclose(stand_in.engine.projector(features), expected, atol=1e-4)
    assert contract.PROJECTOR not in stand_in.plans
    np.testing.assert_allclose(stand_in.engine.projector(features.copy()), expected, atol=1e-4)
    assert contract.PROJECTOR in stand_in.plans


def test_embeddings_are_looked_up_in_the_bundles_own_table(fp32, stand_in) -> None:
    ids = np.array([[1, 7, 7, 3]])
    images = np.random.default_rng(1).standard_normal((2, fp32.spec.language.hidden_size), dtype=np.float32)
    np.testing.assert_array_equal(stand_in.engine.embed(ids, images), fp32.reference.embed(ids, images))


def steps(spec) -> list[tuple[np.ndarray, ...]]:
    """A padded prompt of two rows, longer than a step of the plan, and three tokens after it."""
    random = np.random.default_rng(2)
    lengths, hidden = np.array([[9], [6]]), spec.language.hidden_size
    prompt = random.standard_normal((2, 9, hidden), dtype=np.float32)
    calls = [(prompt, np.tile(np.arange(9), (2, 1)), np.array([0, 0]), np.array([9, 9]), lengths - 1)]
    for step in range(3):
        token = random.standard_normal((2, 1, hidden), dtype=np.float32)
        slots = lengths + step
        calls.append((token, slots, slots[:, 0], slots[:, 0] + 1, np.array([[0], [0]])))
    return calls


def test_a_prompt_in_pieces_and_the_tokens_after_it_give_pytorchs_logits(fp32, stand_in) -> None:
    ours, expected = stand_in.engine.decoder(2, 16), fp32.reference.decoder(2, 16)
    for call in steps(fp32.spec):
        np.testing.assert_allclose(ours.step(*call), expected.step(*call), atol=1e-4)


def test_a_plan_for_several_logit_positions_gives_those_of_a_prompt_in_pieces(fp32, stand_in) -> None:
    session = stand_in.engine._decoder
    profiles = tuple(profile | {LOGIT_POSITIONS: (1, 1, 3)} for profile in session.info.profiles)
    session.info = session.info.model_copy(update={"profiles": profiles})
    prompt, *_ = steps(fp32.spec)
    call = (*prompt[:-1], np.array([[2, 5, 8], [0, 5, 4]]))
    found, expected = (engine.decoder(2, 16).step(*call) for engine in (stand_in.engine, fp32.reference))
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_more_logit_positions_than_a_plan_was_built_for_are_refused(fp32, stand_in) -> None:
    prompt, *_ = steps(fp32.spec)
    with pytest.raises(UsageError, match=r"logit_positions 1 to 1[\s\S]*logit_positions 2"):
        stand_in.engine.decoder(2, 16).step(*prompt[:-1], np.array([[2, 8], [0, 5]]))


def test_prefill_and_decode_run_on_profiles_of_their_own_and_decode_is_captured_once(fp32, stand_in) -> None:
    decoder = stand_in.engine.decoder(2, 16)
    for call in steps(fp32.spec):
        decoder.step(*call)
    assert stand_in.plans[contract.DECODER].profiles == [0, 1]
    assert stand_in.accelerator.captured == 1


def test_rows_that_move_hold_what_pytorchs_do(fp32, stand_in) -> None:
    random, hidden = np.random.default_rng(3), fp32.spec.language.hidden_size
    prompt, token = (random.standard_normal((1, tokens, hidden), dtype=np.float32) for tokens in (6, 1))
    results = []
    for engine in (stand_in.engine, fp32.reference):
        cache = KVCache(engine.decoder(1, 24))
        cache.append(prompt, np.array([6]))
        cache.resize(2, 24)
        cache.append(prompt[:, :3], np.array([3]), 1)
        cache.swap_rows(0, 1)
        found = [cache.append(token, np.array([1])).copy()]
        found.append(cache.append(np.repeat(token, 2, axis=0), np.array([1, 1])).copy())
        cache.copy_row(1, 0, 5)
        found.append(cache.append(token, np.array([1])).copy())
        cache.resize(1, 24)
        found.append(cache.append(token, np.array([1])).copy())
        results.append(found)
    for ours, expected in zip(*results, strict=True):
        np.testing.assert_allclose(ours, expected, atol=1e-4)


def test_an_engine_says_what_its_cache_takes(fp32, stand_in) -> None:
    sizes, limits = fp32.spec.sizes, stand_in.engine.cache_limits()
    assert (limits.max_rows, limits.capacity) == (2, 24)
    assert limits.slot_bytes == 2 * 4 * sizes.layers * sizes.kv_heads * sizes.head_dim


def test_sizes_that_no_profile_takes_are_refused_with_those_that_one_does(stand_in) -> None:
    session = stand_in.engine._projector
    with pytest.raises(UsageError, match=r"not built for these sizes[\s\S]*tiles 1 to 2[\s\S]*tiles 3"):
        session.prepare({}, {"tiles": 3})


@pytest.mark.parametrize(("batch", "capacity"), [(3, 16), (1, 25)])
def test_a_decoder_larger_than_the_plan_is_refused_with_what_it_was_built_for(stand_in, batch, capacity) -> None:
    with pytest.raises(UsageError, match="at most 2 sequences of 24 tokens"):
        stand_in.engine.decoder(batch, capacity)
