from __future__ import annotations

import gc
import logging
import shutil
import threading
import weakref
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from r1v_export import contract
from r1v_export.errors import BundleError
from r1v_export.runner.kv_cache import KVCache, prefill
from r1v_export.targets.onnxruntime.runtime import engine as onnxruntime_engine
from r1v_export.targets.onnxruntime.runtime.engine import OnnxRuntimeEngine
from r1v_export.weights_memory import Settling
from tests.targets.conftest import Built, build
from tests.targets.onnxruntime.lower.graphs import rounded
from tests.tiny_models import tiny_spec

RNG = np.random.default_rng(0)
TOLERANCE = 1e-4


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def assert_close(ours: np.ndarray, expected: np.ndarray) -> None:
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, expected, rtol=0, atol=TOLERANCE)


def prompts(spec, lengths) -> list[np.ndarray]:
    return [normal(length, spec.language.hidden_size) for length in lengths]


def walk(engine, prompts_SE, steps: list[np.ndarray], capacity: int = 48) -> list[np.ndarray]:
    """Logits of a ragged prefill, of three steps, of a second ragged part behind the filled cache, and of the rest."""
    cache, batch = KVCache(engine.decoder(len(prompts_SE), capacity)), len(prompts_SE)
    logits = [prefill_into(cache, prompts_SE)]
    one_each = np.ones(batch, dtype=np.int64)
    logits += [cache.append(step, one_each) for step in steps[:3]]
    logits.append(prefill_into(cache, [prompt[: 2 + row] for row, prompt in enumerate(prompts_SE)]))
    logits += [cache.append(step, one_each) for step in steps[3:]]
    return logits


def prefill_into(cache: KVCache, prompts_SE) -> np.ndarray:
    return prefill(cache, prompts_SE, threading.Event())


@pytest.mark.parametrize("tiles", [1, 3])
def test_images_become_the_references_embeddings(built, tiles):
    engine, reference = built.open(), built.reference
    pixels = normal(tiles, 3, built.spec.tiling.tile_size, built.spec.tiling.tile_size)
    features = reference.vision(pixels)
    assert_close(engine.vision(pixels), features)
    assert_close(engine.projector(features), reference.projector(features))


@pytest.mark.parametrize("tokens_at_once", [1, 8])
def test_large_tiles_are_encoded_in_small_groups_with_the_same_result(built, monkeypatch, tokens_at_once):
    engine, size = built.open(), built.spec.tiling.tile_size
    pixels = normal(5, 3, size, size)
    together = engine.vision(pixels)
    monkeypatch.setattr(onnxruntime_engine, "TOKENS_AT_ONCE", tokens_at_once)
    session = Counting(engine._vision)
    engine.__dict__["_vision"] = session
    assert_close(engine.vision(pixels), together)
    group = max(1, tokens_at_once // engine.sizes.tokens_per_tile)
    assert session.tiles == [len(pixels[start : start + group]) for start in range(0, 5, group)]


class Counting:
    """A session that notes how many tiles it is given."""

    def __init__(self, session) -> None:
        self.session, self.tiles = session, []
        self.get_inputs = session.get_inputs

    def run(self, names, feeds):
        self.tiles.append(len(feeds[contract.PIXEL_VALUES]))
        return self.session.run(names, feeds)


def test_tokens_and_images_are_embedded_as_in_the_reference(built):
    spec = built.spec
    ids = RNG.integers(10, spec.language.vocab_size, (2, 9))
    ids[0, 2:5] = ids[1, 0] = spec.image_token_id
    images = normal(4, spec.language.hidden_size)
    assert_close(built.open().embed(ids, images), built.reference.embed(ids, images))
    ids[ids == spec.image_token_id] = 11
    assert_close(built.open().embed(ids, images[:0]), built.reference.embed(ids, images[:0]))


@pytest.mark.parametrize("lengths", [[12], [12, 3, 7], [1, 9]])
def test_the_lowered_and_the_standard_decoder_follow_the_reference_over_ragged_batches(built, lengths):
    prompts_SE = prompts(built.spec, lengths)
    steps = [normal(len(lengths), 1, built.spec.language.hidden_size) for _ in range(6)]
    expected = walk(built.reference, prompts_SE, steps)
    for engine in (built.open(), built.open_standard()):
        for ours, wanted in zip(walk(engine, prompts_SE, steps), expected, strict=True):
            assert_close(ours, wanted)


def test_logits_of_three_tokens_in_a_step_are_those_of_one_token_at_a_time(built):
    hidden, written = built.spec.language.hidden_size, np.array([6, 4])
    prompt, tokens = normal(2, 6, hidden), normal(2, 3, hidden)
    for engine in (built.reference, built.open(), built.open_standard()):
        logits = []
        for seq in (3, 1):
            decoder = engine.decoder(2, 16)
            decoder.step(prompt, np.tile(np.arange(6), (2, 1)), 0 * written, 0 * written + 6, written[:, None] - 1)
            wanted = np.tile(np.arange(seq), (2, 1))
            for start in range(0, 3, seq):
                slots = written + start
                new = tokens[:, start : start + seq]
                logits.append(decoder.step(new, slots[:, None] + np.arange(seq), slots, slots + seq, wanted))
        together, *one_at_a_time = logits
        assert together.shape == (2, 3, built.spec.language.vocab_size)
        assert_close(together, np.concatenate(one_at_a_time, axis=1))


def test_a_row_that_pauses_while_others_go_on_stays_right(r1v):
    embeds = [normal(3, 1, r1v.spec.language.hidden_size) for _ in range(5)]
    prompts_SE, results = prompts(r1v.spec, [4, 6, 2]), []
    for engine in (r1v.reference, r1v.open()):
        cache = KVCache(engine.decoder(3, 32))
        prefill_into(cache, prompts_SE)
        for embed in embeds[:4]:
            cache.append(embed, np.array([1, 0, 1]))
        results.append(cache.append(embeds[4], np.array([1, 1, 1])))
    assert_close(results[1], results[0])


def test_two_decoders_of_one_engine_do_not_share_their_caches(r1v):
    engine, (a, b) = r1v.open(), prompts(r1v.spec, [5, 5])
    first, second = KVCache(engine.decoder(1, 16)), KVCache(engine.decoder(1, 16))
    prefill_into(first, [a])
    prefill_into(second, [b])
    step, one = normal(1, 1, r1v.spec.language.hidden_size), np.array([1])
    alone = KVCache(engine.decoder(1, 16))
    prefill_into(alone, [a])
    np.testing.assert_array_equal(first.append(step, one), alone.append(step, one))


def test_logits_are_the_callers_to_keep(r1v):
    cache, one = KVCache(r1v.open().decoder(1, 16)), np.array([1])
    first = cache.append(normal(1, 1, r1v.spec.language.hidden_size), one)
    kept = first.copy()
    cache.append(normal(1, 1, r1v.spec.language.hidden_size), one)
    np.testing.assert_array_equal(first, kept)


def addresses(decoder) -> list[int]:
    return [tensor_BKCD.ctypes.data for tensor_BKCD in decoder.cache.contents()]


@pytest.mark.parametrize("graphs", ["lowered", "standard"])
def test_the_cache_is_updated_in_place_and_never_copied(r1v, graphs, capfd, caplog):
    """ONNX Runtime warns on stderr when it copies a cache; and each step writes its slot and leaves all others."""
    caplog.set_level(logging.INFO, logger="r1v_export")
    engine = r1v.open() if graphs == "lowered" else r1v.open_standard()
    decoder = engine.decoder(2, 16)
    cache = KVCache(decoder)
    pointers = addresses(decoder)
    prefill_into(cache, prompts(r1v.spec, [5, 3]))
    before = [tensor_BKCD.copy() for tensor_BKCD in decoder.cache.contents()]
    cache.append(normal(2, 1, r1v.spec.language.hidden_size), np.array([1, 1]))
    for old_BKCD, tensor_BKCD in zip(before, decoder.cache.contents(), strict=True):
        changed = [sorted({slot for _, slot, _ in np.argwhere(row)}) for row in tensor_BKCD != old_BKCD]
        assert changed == [[5], [3]]
    assert addresses(decoder) == pointers
    assert capfd.readouterr().err == ""


def test_onnxruntime_does_warn_of_a_copied_cache(r1v, capfd, caplog):
    """What the test above relies on."""
    caplog.set_level(logging.INFO, logger="r1v_export")
    session = r1v.open_standard()._decoder
    sizes = {"batch": 1, "seq": 1, "logit_positions": 1, "capacity": 8}
    feeds = {
        value.name: np.zeros([sizes.get(dim, dim) for dim in value.shape], dtype)
        for value in session.get_inputs()
        for dtype in [np.int64 if value.type == "tensor(int64)" else np.float32]
    }
    session.run([contract.LOGITS, contract.present_key(0)], feeds | {contract.CACHE_LENGTH: np.array([1])})
    assert "copying past_cache" in capfd.readouterr().err


@pytest.mark.parametrize("head_dim", [4, 8, 12, 16, 20, 24, 40])
def test_heads_of_any_even_size_follow_the_reference(r1v, tmp_path, head_dim):
    """ONNX Runtime's fused attention takes multiples of 16 only; others keep the standard operator."""
    built = build(tiny_spec(language={"head_dim": head_dim}), tmp_path, others=r1v)
    prompts_SE = prompts(built.spec, [7, 3])
    steps = [normal(2, 1, built.spec.language.hidden_size) for _ in range(6)]
    expected = walk(built.reference, prompts_SE, steps)
    for ours, wanted in zip(walk(built.open(), prompts_SE, steps), expected, strict=True):
        assert_close(ours, wanted)


def moving_rows(engine, prompts_SE, token, capacity: int = 16) -> list[np.ndarray]:
    """Logits of one more token of each row after rows were filled by themselves, exchanged, copied, and the cache grew
    and shrank."""
    cache, results = KVCache(engine.decoder(3, capacity)), []
    for row, prompt_SE in enumerate(prompts_SE):
        cache.append(prompt_SE[None, :-1], np.array([len(prompt_SE) - 1]), row)
        results.append(cache.append(prompt_SE[None, -1:], np.array([1]), row))

    def one_more(rows: int) -> None:
        results.append(cache.append(np.repeat(token, rows, axis=0), np.ones(rows, np.int64)))
        for row in range(rows):
            cache.truncate(row, int(cache.lengths_B[row]) - 1)

    one_more(2)
    cache.swap_rows(0, 2)
    one_more(3)
    cache.copy_row(2, 1, 4)
    one_more(3)
    cache.resize(4, capacity + 8)
    cache.copy_row(0, 3, 3)
    one_more(4)
    cache.resize(2, capacity)
    one_more(2)
    return results


@pytest.mark.parametrize("lengths", [[7, 5, 6]])
def test_rows_that_move_hold_what_the_references_do(built, lengths):
    prompts_SE, token = prompts(built.spec, lengths), normal(1, 1, built.spec.language.hidden_size)
    expected = moving_rows(built.reference, prompts_SE, token)
    for ours, wanted in zip(moving_rows(built.open(), prompts_SE, token), expected, strict=True):
        assert_close(ours, wanted)


def test_a_row_among_others_computes_bit_for_bit_what_it_computes_alone(r1v):
    """In float32, wherever it lies and however many are decoded with it: answers are then the lone request's."""
    engine, prompts_SE = r1v.open(), prompts(r1v.spec, [9, 4, 12, 1])
    steps = [normal(4, 1, r1v.spec.language.hidden_size) for _ in range(4)]
    together = KVCache(engine.decoder(4, 32))
    first = [together.append(prompt[None], np.array([len(prompt)]), row) for row, prompt in enumerate(prompts_SE)]
    for rows in (4, 3, 2, 1):
        logits_BV = together.append(steps[rows - 1][:rows], np.ones(rows, np.int64))
        for row in range(rows):
            alone = KVCache(engine.decoder(1, 48))
            np.testing.assert_array_equal(
                alone.append(prompts_SE[row][None], np.array([len(prompts_SE[row])])), first[row]
            )
            for earlier in range(4, rows - 1, -1):
                lone_1V = alone.append(steps[earlier - 1][row : row + 1], np.array([1]))
            np.testing.assert_array_equal(lone_1V[0], logits_BV[row])


def test_an_engine_says_what_its_cache_takes(built):
    sizes, limits = built.spec.sizes, built.open().cache_limits()
    assert limits.slot_bytes == 2 * 4 * sizes.layers * sizes.kv_heads * sizes.head_dim
    tensors = built.open_standard().decoder(2, 8).cache.contents()
    assert sum(tensor_BKCD.nbytes for tensor_BKCD in tensors) == 2 * 8 * limits.slot_bytes


def test_pieces_of_prompts_are_shorter_on_a_cpu(built):
    engine, chunks = built.open(), []
    for engine.device in ("cpu", "cuda"):
        chunks.append(engine.cache_limits().prefill.chunk)
    assert chunks == [160, 512]


def test_a_cache_grows_to_all_positions_of_the_model_where_it_lies(r1v):
    """The lowered graph's attention stops at each row's length, so that slots for later cost nothing."""
    decoder = r1v.open().decoder(2, 16)
    before = addresses(decoder)
    decoder.resize(2, r1v.spec.language.max_position_embeddings, np.array([5, 3]))
    assert addresses(decoder) == before


def test_attention_that_computes_over_all_slots_is_given_those_that_are_asked_for(r1v):
    decoder = r1v.open_standard().decoder(2, 16)
    assert {tensor_BKCD.shape[2] for tensor_BKCD in decoder.cache.contents()} == {16}
    decoder.resize(2, 64, np.array([5, 3]))
    assert {tensor_BKCD.shape[2] for tensor_BKCD in decoder.cache.contents()} == {64}


def test_an_int8_cache_takes_a_byte_a_number_and_follows_the_standard_graph(copy):
    """The kernel rounds as the graph's QuantizeLinear does, and reads what DequantizeLinear gives."""
    path = copy.graphs / "decoder.onnx"
    ir.save(rounded(ir.load(path), copy.spec.language.num_layers, "int8"), path)
    shutil.rmtree(copy.engine_folder)
    copy.engine_folder.mkdir()
    copy.build_engine(copy.engine_folder)
    ours, standard, sizes = copy.open(), copy.open_standard(), copy.spec.sizes
    assert ours.cache_limits().slot_bytes == 2 * sizes.layers * sizes.kv_heads * sizes.head_dim
    assert {tensor_BKCD.dtype for tensor_BKCD in ours.decoder(1, 8).cache.contents()} == {np.dtype(np.int8)}
    prompts_SE, hidden = prompts(copy.spec, [7, 3]), copy.spec.language.hidden_size
    steps = [normal(2, 1, hidden) for _ in range(6)]
    for found, wanted in zip(walk(ours, prompts_SE, steps), walk(standard, prompts_SE, steps), strict=True):
        assert_close(found, wanted)
    moved, token = prompts(copy.spec, [7, 5, 6]), normal(1, 1, hidden)
    for found, wanted in zip(moving_rows(ours, moved, token), moving_rows(standard, moved, token), strict=True):
        assert_close(found, wanted)


def logits_of(engine: OnnxRuntimeEngine) -> np.ndarray:
    embeds = np.random.default_rng(0).standard_normal((1, 5, engine.sizes.hidden)).astype(np.float32)
    return KVCache(engine.decoder(1, 64)).append(embeds, np.array([5]))


@pytest.fixture
def opened_by(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The threads that opened a decoder."""
    threads, real = list[str](), OnnxRuntimeEngine._open_decoder

    def open_decoder(*arguments: Any) -> object:
        threads.append(threading.current_thread().name)
        return real(*arguments)

    monkeypatch.setattr(OnnxRuntimeEngine, "_open_decoder", open_decoder)
    return threads


def test_a_decoder_that_was_begun_computes_the_same(r1v: Built, opened_by: list[str]) -> None:
    begun = r1v.open()
    begun.begin_decoder(alone=True)
    begun.begin_decoder(alone=True)
    np.testing.assert_array_equal(logits_of(begun), logits_of(r1v.open()))
    begun.begin_decoder(alone=True)
    assert opened_by == ["opening", "MainThread"]


def test_nothing_is_begun_on_a_gpu(r1v: Built, opened_by: list[str]) -> None:
    engine = r1v.open()
    engine.device = "cuda"
    engine.begin_decoder(alone=True)
    assert not opened_by


def test_a_damaged_decoder_is_refused_at_its_first_use_and_opened_anew_at_the_next(
    copy: Built, opened_by: list[str]
) -> None:
    file = copy.engine_folder / f"{contract.DECODER}.onnx"
    whole = file.read_bytes()
    file.write_bytes(b"damaged")
    engine = copy.open()
    engine.begin_decoder(alone=True)
    with pytest.raises(BundleError):
        engine.cache_limits()
    file.write_bytes(whole)
    engine.cache_limits()
    assert opened_by == ["opening", "MainThread"]


def test_an_engine_that_was_begun_goes_with_its_last_reference(r1v: Built) -> None:
    engine = r1v.open()
    engine.begin_decoder(alone=True)
    engine.cache_limits()
    gone = weakref.ref(engine)
    gc.disable()
    try:
        del engine
        assert gone() is None
    finally:
        gc.enable()


def test_memory_of_weights_is_settled_at_the_first_step_for_one_token(
    r1v: Built, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = list[Settling]()
    engine = r1v.open()
    monkeypatch.setattr(Settling, "begin", lambda self: asked.append(self))
    decoder, hidden = engine.decoder(1, 16), r1v.spec.sizes.hidden
    for start, seq in ((0, 4), (4, 1)):
        assert not asked
        positions = np.arange(start, start + seq)[None]
        embeds = np.zeros((1, seq, hidden), np.float32)
        decoder.step(embeds, positions, np.array([start]), np.array([start + seq]), np.array([[seq - 1]]))
    assert len(asked) == 1
