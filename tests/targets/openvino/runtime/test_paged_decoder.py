"""The decoder over a pool of blocks, in float32: as PyTorch computes it, however rows and prompts are cut."""

from __future__ import annotations

import importlib
import time

import numpy as np
import onnx_ir as ir
import pytest

from r1v_export import contract
from r1v_export.contract import DECODER, PrefillLimits
from r1v_export.cpus import has_bfloat16_products, is_x86
from r1v_export.errors import BundleError, CapabilityError, GraphError
from r1v_export.opening import is_opening
from r1v_export.runner.kv_cache import KVCache
from r1v_export.targets.openvino.config import OpenVinoConfig
from r1v_export.targets.openvino.target import OpenVinoTarget
from r1v_export.targets.openvino.write.graphs import write_paged_decoder
from r1v_export.weights_memory import Settling
from tests.targets.conftest import Built
from tests.targets.onnxruntime.runtime.test_engine import assert_close, moving_rows, normal, prefill_into, prompts, walk
from tests.targets.openvino.conftest import NEEDS_OPENVINO

pytestmark = NEEDS_OPENVINO
MODULE = "r1v_export.targets.openvino.runtime.paged_decoder"
"""Not imported here: it needs OpenVINO."""


def paged_decoder():
    return importlib.import_module(MODULE)


def open_paged(built: Built, folder, matmul="float32", int4_inputs=None, change=lambda model: None):
    from r1v_export.targets.openvino.runtime.engine import OpenVinoEngine

    model = ir.load(built.graphs / f"{DECODER}.onnx")
    change(model)
    write_paged_decoder(model, built.graphs, OpenVinoConfig(matmul=matmul, int4_inputs=int4_inputs), folder)
    return OpenVinoEngine(folder, built.folder, built.spec.sizes)


@pytest.fixture
def tiles(monkeypatch):
    """A CPU that multiplies tiles of bfloat16, as far as the runtime knows: AVX-512 computes the same more slowly."""
    if not (is_x86() and has_bfloat16_products()):
        pytest.skip("this is no x86 CPU with bfloat16 products")
    monkeypatch.setattr("r1v_export.targets.openvino.runtime.model.has_bfloat16_tiles", lambda: True)


def be_computer(monkeypatch, in_tiles, memory_bytes):
    """One with bfloat16 products, as far as the runtime knows, and perhaps with tiles."""
    model = "r1v_export.targets.openvino.runtime.model"
    monkeypatch.setattr(f"{model}.has_bfloat16", lambda: True)
    monkeypatch.setattr(f"{model}.has_bfloat16_tiles", lambda: in_tiles)
    monkeypatch.setattr(f"{model}.most_bytes", lambda: memory_bytes)


def distances(found, wanted):
    """Relative, of every array."""
    return [np.linalg.norm(a - b) / np.linalg.norm(b) for a, b in zip(found, wanted, strict=True)]


@pytest.fixture
def paged(built, tmp_path):
    return open_paged(built, tmp_path)


@pytest.mark.parametrize("lengths", [[12], [12, 3, 7], [1, 9], [40, 33]])
def test_ragged_batches_follow_the_reference(built, paged, lengths):
    prompts_SE = prompts(built.spec, lengths)
    steps = [normal(len(lengths), 1, built.spec.language.hidden_size) for _ in range(6)]
    ours = walk(paged, prompts_SE, steps)
    for found, wanted in zip(ours, walk(built.reference, prompts_SE, steps), strict=True):
        assert_close(found, wanted)


def test_inputs_of_the_same_shapes_are_bound_once(built, paged, monkeypatch):
    decoder = paged.decoder(3, 48)
    graph, hidden = decoder._steps, built.spec.language.hidden_size
    bound, cache, counts = [], KVCache(decoder), []
    monkeypatch.setattr(graph._request, "set_tensor", Recording(graph._request.set_tensor, lambda: bound.append(1)))
    for rows in ([3, 3, 3], [1, 1, 1], [1, 1, 1], [2, 1, 1], [1, 1, 1]):
        before = len(bound)
        cache.append(normal(3, max(rows), hidden), np.array(rows))
        counts.append(len(bound) > before)
    assert counts == [True, True, False, True, True]


def test_in_bfloat16_it_follows_the_reference_in_half_the_memory(built, tmp_path):
    from r1v_export.targets.openvino.doctor import has_bfloat16

    if not has_bfloat16():
        pytest.skip("this CPU has no bfloat16 products")
    paged = open_paged(built, tmp_path, "bfloat16")
    prompts_SE = prompts(built.spec, [12, 30, 7])
    steps = [normal(3, 1, built.spec.language.hidden_size) for _ in range(6)]
    for distance in distances(walk(paged, prompts_SE, steps), walk(built.reference, prompts_SE, steps)):
        assert 1e-5 < distance < 2e-2
    assert_half_the_memory(built, paged)


def assert_half_the_memory(built, paged):
    sizes = built.spec.sizes
    assert paged.cache_limits().slot_bytes == 2 * sizes.layers * sizes.kv_heads * sizes.head_dim * 2
    assert {pool.itemsize for pool in paged.decoder(2, 64)._pools.values()} == {2}


def test_with_inputs_in_8_bits_attention_alone_is_in_bfloat16_where_tiles_are_multiplied(built, tmp_path, tiles):
    (tmp_path / "exact").mkdir()
    exact = open_paged(built, tmp_path / "exact", "bfloat16")
    paged = open_paged(built, tmp_path, "bfloat16", "int8")
    prompts_SE = prompts(built.spec, [12, 30, 7])
    steps = [normal(3, 1, built.spec.language.hidden_size) for _ in range(6)]
    expected = walk(built.reference, prompts_SE, steps)
    found, all_rounded = (distances(walk(each, prompts_SE, steps), expected) for each in (paged, exact))
    # The graphs have no 4-bit weights, so that nothing is in 8 bits.
    assert all(1e-6 < distance < 2e-2 for distance in found)
    assert np.mean(found) < np.mean(all_rounded)
    assert_half_the_memory(built, paged)


def test_prompts_are_computed_by_a_graph_of_their_own_on_the_same_pools(built, tmp_path, tiles, monkeypatch):
    monkeypatch.setattr(f"{MODULE}.PROMPT_TOKENS", 8)
    monkeypatch.setattr(f"{MODULE}.BLOCKS", 1)  # the pools are allocated anew under both graphs
    paged = open_paged(built, tmp_path, "bfloat16", "int8")
    prompts_SE = prompts(built.spec, [30, 3, 36])
    steps = [normal(3, 1, built.spec.language.hidden_size) for _ in range(6)]
    for distance in distances(walk(paged, prompts_SE, steps), walk(built.reference, prompts_SE, steps)):
        assert distance < 2e-2


@pytest.mark.parametrize("prompts_apart", [False, True])
def test_the_head_is_packed_when_the_graphs_are_compiled_before_their_layers(
    built, tmp_path, request, monkeypatch, prompts_apart
):
    if prompts_apart:
        request.getfixturevalue("tiles")
    else:
        monkeypatch.setattr("r1v_export.targets.openvino.runtime.model.has_bfloat16_tiles", lambda: False)
    engine = open_paged(built, tmp_path, "bfloat16", "int8")
    graphs = engine._decoder_graphs
    assert (graphs.steps is not graphs.prompts) == prompts_apart
    assert [each.weights.is_packed for each in graphs[:3]] == [False, False, True]
    KVCache(engine.decoder(2, 8)).append(normal(2, 1, built.spec.language.hidden_size), np.array([1, 1]))
    assert graphs.steps.weights.is_packed


def test_the_head_rounds_as_steps_do_and_has_the_threads_of_all(built, tmp_path, tiles):
    engine = open_paged(built, tmp_path, "bfloat16", "int8")
    engine.threads = 2
    compiled = [each.model for each in engine._decoder_graphs[:3]]
    assert [model.get_property("INFERENCE_NUM_THREADS") for model in compiled] == [2, 2, 2]
    hints = [str(model.get_property("INFERENCE_PRECISION_HINT")) for model in compiled]
    assert hints == ["<Type: 'float32'>", "<Type: 'bfloat16'>", "<Type: 'float32'>"]


def wait_for_threads():
    end = time.monotonic() + 60
    while is_opening():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.parametrize("alone", [False, True])
def test_a_server_s_weights_are_packed_before_there_is_a_prompt(built, tmp_path, tiles, monkeypatch, alone):
    paged = open_paged(built, tmp_path, "bfloat16", "int8")
    paged.begin_decoder(alone)
    monkeypatch.setattr(f"{MODULE}.PROMPT_TOKENS", 20)
    decoders, hidden = paged._decoder_graphs, built.spec.language.hidden_size
    wait_for_threads()
    assert [each.weights.is_packed for each in decoders[:3]] == [not alone, not alone, True]
    prompts_SE, steps = prompts(built.spec, [30, 9]), [normal(2, 1, hidden)]
    (tmp_path / "not begun").mkdir()
    expected = walk(open_paged(built, tmp_path / "not begun", "bfloat16", "int8"), prompts_SE, steps)
    for found, wanted in zip(walk(paged, prompts_SE, steps), expected, strict=True):
        np.testing.assert_array_equal(found, wanted)


def test_weights_that_cannot_be_packed_before_are_packed_by_the_first_request(paged, built, monkeypatch, caplog):
    def fail(*_):
        raise GraphError("The runtime fails.")

    run = paged_decoder().PagedDecoder._run
    with monkeypatch.context() as failing:
        failing.setattr(paged_decoder().PagedDecoder, "_run", fail)
        paged.begin_decoder(alone=False)
        decoders = paged._decoder_graphs
        wait_for_threads()
    assert "not packed before the first request: The runtime fails" in caplog.text
    assert paged_decoder().PagedDecoder._run is run
    KVCache(paged.decoder(1, 48)).append(normal(1, 4, built.spec.language.hidden_size), np.array([4]))
    assert decoders.steps.weights.is_packed


def test_settling_is_given_what_a_decoder_s_weights_take(built, tmp_path, monkeypatch):
    counted = []
    monkeypatch.setattr("r1v_export.targets.openvino.runtime.engine.Settling", counted.append)
    open_paged(built, tmp_path)
    values = ir.load(built.graphs / f"{DECODER}.onnx").graph.initializers.values()
    in_files = sum(each.const_value.nbytes for each in values if isinstance(each.const_value, ir.ExternalTensor))
    (weights_bytes,) = counted
    assert 0.95 * in_files < weights_bytes <= in_files  # what is small may lie in the graph


def test_memory_of_weights_is_settled_behind_the_first_step_for_one_token(built, paged, monkeypatch):
    asked = []
    monkeypatch.setattr(Settling, "begin", lambda self: asked.append(self))
    cache, hidden = KVCache(paged.decoder(2, 48)), built.spec.language.hidden_size
    for counts, times in (([4, 1], 0), ([1, 1], 1)):
        cache.append(normal(2, max(counts), hidden), np.array(counts))
        assert len(asked) == times


def taken_by(decoder, monkeypatch):
    """The graphs that a decoder runs from now on."""
    taken = []
    for name in ("_steps", "_prompts"):
        graph = getattr(decoder, name)
        monkeypatch.setattr(graph, "run", Recording(graph.run, lambda name=name: taken.append(name)))
    return taken


def test_each_row_is_computed_by_the_same_graph_whatever_others_there_are(built, tmp_path, tiles, monkeypatch):
    monkeypatch.setattr(f"{MODULE}.PROMPT_TOKENS", 8)
    decoder = open_paged(built, tmp_path, "bfloat16", "int8").decoder(4, 48)
    taken, cache = taken_by(decoder, monkeypatch), KVCache(decoder)
    for counts, expected in (
        ([8], ["_prompts"]),
        ([7], ["_steps"]),
        ([7, 7, 7], ["_steps"]),
        ([1, 2, 9, 8], ["_steps", "_prompts"]),
        ([1, 9, 1], ["_steps", "_prompts", "_steps"]),
    ):
        new = normal(len(counts), max(counts), built.spec.language.hidden_size)
        cache.append(new, np.array(counts))
        assert taken == expected
        taken.clear()


def test_prompts_and_rows_of_few_tokens_run_together_where_one_graph_computes_both(built, tmp_path, tiles, monkeypatch):
    monkeypatch.setattr(f"{MODULE}.PROMPT_TOKENS", 8)
    ours, reference = open_paged(built, tmp_path, "bfloat16", "exact").decoder(3, 48), built.reference.decoder(3, 48)
    runs, caches, run = [], (KVCache(ours), KVCache(reference)), ours._prompts.run
    monkeypatch.setattr(ours._prompts, "run", lambda inputs: runs.append(inputs) or run(inputs))
    for counts in ([9, 1, 9], [1, 8, 2]):
        new = normal(len(counts), max(counts), built.spec.language.hidden_size)
        found, wanted = (cache.append(new, np.array(counts)) for cache in caches)
        assert len(runs) == 1
        assert max(distances(found, wanted)) < 2e-2
        runs.clear()


@pytest.mark.parametrize("int4_inputs", ["int8", "exact"])
@pytest.mark.parametrize(
    ("counts", "computed"),
    [
        ([110], [110, 18]),
        ([70, 45], [70, 45, 13]),
        ([90], [90]),
        ([128], [128]),
        ([100, 110], [100, 110, 32, 14]),
    ],
)
def test_tokens_are_filled_up_where_more_of_them_take_less_time(
    built, tmp_path, tiles, monkeypatch, counts, computed, int4_inputs
):
    monkeypatch.setattr(f"{MODULE}.PROMPT_TOKENS", 40)
    monkeypatch.setattr(f"{MODULE}.BLOCKS", 1)  # the pools grow, and the block that padding has moves with their end
    engine, hidden = open_paged(built, tmp_path, "bfloat16", int4_inputs), built.spec.language.hidden_size
    ours, reference = engine.decoder(3, 250), built.reference.decoder(3, 250)
    first, new, token = normal(3, 2, hidden), normal(len(counts), max(counts), hidden), normal(3, 1, hidden)
    caches = KVCache(ours), KVCache(reference)
    for cache in caches:
        cache.append(first, np.array([2, 1, 2]))
    others = [ours._parts(pool)[len(counts) :].copy() for pool in ours._pools.values()]
    begins, run = [], ours._prompts.run
    with monkeypatch.context() as patched:
        patched.setattr(ours._prompts, "run", lambda inputs: begins.append(inputs["subsequence_begins"]) or run(inputs))
        found, wanted = (cache.append(new, np.array(counts)) for cache in caches)
    assert np.diff(begins[0]).tolist() == computed
    assert max(distances(found, wanted)) < 2e-2
    for before, pool in zip(others, ours._pools.values(), strict=True):
        np.testing.assert_array_equal(ours._parts(pool)[len(counts) :, : before.shape[1]], before)
    for cache in caches:
        cache.swap_rows(0, 2)
        cache.copy_row(2, 1, 40)
    again = normal(1, 115, hidden)
    found, wanted = (cache.append(again, np.array([115]), 0) for cache in caches)
    assert max(distances(found, wanted)) < 2e-2
    found, wanted = (cache.append(token, np.ones(3, np.int64)) for cache in caches)
    assert max(distances(found, wanted)) < 2e-2


@pytest.mark.parametrize(
    ("in_tiles", "int4_inputs", "matmul", "memory_bytes", "limits"),
    [
        (True, "int8", "bfloat16", 1 << 40, PrefillLimits(chunk=256, together=256, least=64, short_tokens=96)),
        (True, "exact", "bfloat16", 1 << 40, PrefillLimits(chunk=256, together=256)),
        (True, "int8", "bfloat16", 1 << 10, PrefillLimits(chunk=160, together=96)),  # no room for a second graph
        (True, "int8", "float32", 1 << 40, PrefillLimits(chunk=160, together=96)),
        (True, "exact", "float32", 1 << 40, PrefillLimits(chunk=160, together=96)),
        (False, "int8", "bfloat16", 1 << 40, PrefillLimits(chunk=160, together=96)),
        (False, "exact", "bfloat16", 1 << 40, PrefillLimits(chunk=160, together=96)),
    ],
)
def test_prompts_are_cut_as_products_compute_them_best(
    built, tmp_path, monkeypatch, in_tiles, int4_inputs, matmul, memory_bytes, limits
):
    be_computer(monkeypatch, in_tiles, memory_bytes)
    assert open_paged(built, tmp_path, matmul, int4_inputs).cache_limits().prefill == limits


def test_one_sequence_has_a_graph_for_one_token_and_all_else_is_computed_by_that_for_prompts(
    built, tmp_path, tiles, monkeypatch
):
    engine, hidden = open_paged(built, tmp_path, "bfloat16", "int8"), built.spec.language.hidden_size
    monkeypatch.setattr(f"{MODULE}.BLOCKS", 1)  # the pools grow under both graphs
    ours, reference = engine.one_sequence_decoder(96), built.reference.decoder(1, 96)
    steps = engine._one_sequence_graphs.steps.model
    shapes = {name: steps.input(name).partial_shape.to_string() for name in (contract.INPUTS_EMBEDS, "past_lens")}
    assert shapes == {contract.INPUTS_EMBEDS: f"[1,1,{hidden}]", "past_lens": "[1]"}
    taken, caches = taken_by(ours, monkeypatch), (KVCache(ours), KVCache(reference))
    for count in (20, 1, 1, 30, 1):
        new = normal(1, count, hidden)
        found, wanted = (cache.append(new, np.array([count])) for cache in caches)
        assert distances(found, wanted)[0] < 2e-2
    new = normal(1, 4, hidden)
    found, wanted = (cache.append_scored(new, np.array([4])) for cache in caches)  # drafts
    assert max(distances(found[0], wanted[0])) < 2e-2
    for cache in caches:
        cache.resize(2, 96)
        cache.copy_row(0, 1, 9)
    new = normal(2, 1, hidden)
    for rows, first in ((2, 0), (1, 1)):
        found, wanted = (cache.append(new[:rows], np.ones(rows, np.int64), first) for cache in caches)
        assert max(distances(found, wanted)) < 2e-2
    token, prompt = "_steps", "_prompts"
    assert taken == [prompt, token, token, prompt, token, prompt, prompt, token]


def test_one_sequence_and_several_share_prompts_and_head_and_settle_each_their_own(built, tmp_path, tiles, monkeypatch):
    asked, new = [], normal(2, 1, built.spec.language.hidden_size)
    monkeypatch.setattr(Settling, "begin", lambda self: asked.append(self))
    engine = open_paged(built, tmp_path, "bfloat16", "int8")
    for decoder in (engine.one_sequence_decoder(8), engine.decoder(2, 8), engine.one_sequence_decoder(8)):
        KVCache(decoder).append(new[: decoder.batch], np.ones(decoder.batch, np.int64))
    one, several, again = asked
    assert one is again is not several
    one, several = engine._one_sequence_graphs, engine._decoder_graphs
    assert one.prompts is several.prompts
    assert one.head is several.head
    assert (one.one_token, several.one_token) == (True, False)
    assert one.steps is not several.steps


@pytest.mark.parametrize("fails", [False, True])
def test_a_server_has_no_graph_for_one_token(built, tmp_path, tiles, monkeypatch, fails):
    from r1v_export.targets.openvino.runtime.engine import OpenVinoEngine

    def fail(*_, **__):
        raise BundleError("It cannot be read.")

    engine = open_paged(built, tmp_path, "bfloat16", "int8")
    with monkeypatch.context() as failing:
        if fails:
            failing.setattr(OpenVinoEngine, "_compile_decoder", fail)
        engine.begin_decoder(alone=False)
        wait_for_threads()
    if fails:
        with pytest.raises(BundleError, match="It cannot be read"):
            engine.one_sequence_decoder(8)
    engine.one_sequence_decoder(8)
    assert "_one_sequence_graphs" not in vars(engine)


def test_without_a_graph_for_prompts_one_sequence_has_the_only_graph(paged):
    paged.one_sequence_decoder(8)
    graphs = paged._decoder_graphs
    assert (graphs.steps is graphs.prompts, graphs.one_token) == (True, False)
    assert "_one_sequence_graphs" not in vars(paged)


class Recording:
    """A function that says when it is called."""

    def __init__(self, function, said):
        self._function, self._said = function, said

    def __call__(self, *given):
        self._said()
        return self._function(*given)


@pytest.mark.parametrize(
    ("matmul", "int4_inputs", "in_tiles", "memory", "attends"),
    [
        ("bfloat16", "int8", True, 1 << 40, [("bf16", "f32"), ("bf16", "bf16")]),
        ("bfloat16", "int8", True, 1 << 10, [("bf16", "f32")]),
        ("bfloat16", "int8", False, 1 << 40, [("f32", "f32")]),
        ("float32", "int8", True, 1 << 40, [("f32", "f32")]),  # as bundles before 2026-11-30 say it
        ("bfloat16", "exact", False, 1 << 40, [("bf16", "bf16")]),
        ("float32", "exact", True, 1 << 40, [("f32", "f32")]),
    ],
)
def test_what_is_rounded_to_bfloat16_is_decided_by_bundle_processor_and_memory(
    built, tmp_path, monkeypatch, matmul, int4_inputs, in_tiles, memory, attends
):
    be_computer(monkeypatch, in_tiles, memory)
    monkeypatch.setattr("r1v_export.targets.openvino.target.has_bfloat16_tiles", lambda: in_tiles)
    paged = open_paged(built, tmp_path, matmul, int4_inputs)
    assert [tuple(each) for each in (paged.attention, paged.attention_of_prompts) if each] == attends
    rounds = any(pools == "bf16" for pools, _ in attends)
    assert OpenVinoTarget().decoder_compute(tmp_path) == ("bfloat16" if rounds else "float32")


def test_without_bfloat16_products_it_is_in_float32(built, tmp_path, monkeypatch):
    monkeypatch.setattr("r1v_export.targets.openvino.runtime.model.has_bfloat16", lambda: False)
    paged = open_paged(built, tmp_path, "bfloat16")
    prompts_SE = prompts(built.spec, [12, 40])
    for found, wanted in zip(walk(paged, prompts_SE, []), walk(built.reference, prompts_SE, []), strict=True):
        assert_close(found, wanted)


@pytest.mark.parametrize(("at_once", "blocks"), [(512, 8), (5, 1), (1, 2), (40, 1)])
def test_however_rows_are_cut_and_the_cache_grows_the_numbers_stay(built, paged, monkeypatch, at_once, blocks):
    monkeypatch.setattr(f"{MODULE}.TOKENS_AT_ONCE", at_once)
    monkeypatch.setattr(f"{MODULE}.BLOCKS", blocks)
    prompts_SE = prompts(built.spec, [30, 3, 36])
    steps = [normal(3, 1, built.spec.language.hidden_size) for _ in range(6)]
    expected = walk(built.reference, prompts_SE, steps)
    for found, wanted in zip(walk(paged, prompts_SE, steps), expected, strict=True):
        assert_close(found, wanted)


def test_however_prompts_are_cut_the_numbers_stay(built, paged):
    prompt_SE, results = normal(40, built.spec.language.hidden_size), []
    for engine in (paged, built.reference):
        for cuts in ([40], [16, 8, 16], [1, 30, 9]):
            cache, start = KVCache(engine.decoder(2, 48)), 0
            for count in cuts:
                logits = cache.append(prompt_SE[None, start : start + count], np.array([count]), 1)
                start += count
            results.append(logits)
    for found, wanted in zip(results[:3], results[3:], strict=True):
        assert_close(found, wanted)


def test_logits_of_several_tokens_in_a_step_are_those_of_one_token_at_a_time(built, paged):
    hidden, written = built.spec.language.hidden_size, np.array([6, 4])
    prompt, tokens = normal(2, 6, hidden), normal(2, 3, hidden)
    results = []
    for engine in (paged, built.reference):
        decoder = engine.decoder(2, 16)
        decoder.step(prompt, np.tile(np.arange(6), (2, 1)), 0 * written, 0 * written + 6, written[:, None] - 1)
        slots, wanted = written[:, None] + np.arange(3), np.array([[2, 0, 1], [1, 1, 2]])
        results.append(decoder.step(tokens, slots, written, written + 3, wanted))
    assert_close(*results)


@pytest.mark.parametrize("blocks", [8, 1])
def test_rows_of_several_blocks_move_grow_and_shrink(built, paged, monkeypatch, blocks):
    monkeypatch.setattr(f"{MODULE}.BLOCKS", blocks)
    prompts_SE, token = prompts(built.spec, [40, 3, 70]), normal(4, 1, built.spec.language.hidden_size)
    results = []
    for engine in (paged, built.reference):
        cache, logits = KVCache(engine.decoder(3, 96)), []
        prefill_into(cache, prompts_SE)
        cache.swap_rows(0, 2)
        cache.copy_row(0, 1, 35)
        cache.resize(4, 128)
        logits.append(cache.append(token[:3], np.ones(3, np.int64)))
        cache.swap_rows(3, 1)
        cache.copy_row(2, 1, 33)
        cache.resize(2, 40)
        logits.append(cache.append(token[1:2], np.ones(1, np.int64), first_row=1))
        results.append(logits)
    for found, wanted in zip(*results, strict=True):
        assert_close(found, wanted)


@pytest.mark.parametrize("blocks", [8, 1])
def test_rows_that_move_hold_what_the_references_do(built, paged, monkeypatch, blocks):
    monkeypatch.setattr(f"{MODULE}.BLOCKS", blocks)
    prompts_SE, token = prompts(built.spec, [7, 5, 6]), normal(1, 1, built.spec.language.hidden_size)
    expected = moving_rows(built.reference, prompts_SE, token)
    for found, wanted in zip(moving_rows(paged, prompts_SE, token), expected, strict=True):
        assert_close(found, wanted)


def test_a_step_writes_the_slots_of_its_own_rows_and_no_others(built, paged):
    decoder = paged.decoder(3, 64)
    cache = KVCache(decoder)
    prefill_into(cache, prompts(built.spec, [40, 3, 5]))
    cache.swap_rows(0, 2)
    before = [pool.copy() for pool in decoder._pools.values()]
    cache.append(normal(2, 1, built.spec.language.hidden_size), np.array([1, 1]), first_row=1)
    # Two blocks of 32 slots each row has; what was row 2 is the first one now, and the other way round.
    for old, new in zip(before, decoder._pools.values(), strict=True):
        assert sorted({(block, slot) for block, _, slot, _ in np.argwhere(new != old)}) == [(1, 40 - 32), (2, 3)]


def test_a_pool_has_no_more_blocks_than_rows_need_so_far(built, paged, monkeypatch):
    monkeypatch.setattr(f"{MODULE}.BLOCKS", 2)
    decoder = paged.decoder(2, 150)
    cache = KVCache(decoder)
    for length, blocks in ((3, 2), (61, 2), (1, 4), (64, 5)):
        cache.append(normal(1, length, built.spec.language.hidden_size), np.array([length]))
        assert {len(pool) for pool in decoder._pools.values()} == {2 * blocks}


def test_the_graph_has_no_cache_of_its_own(built, tmp_path):
    open_paged(built, tmp_path)
    graph = ir.load(tmp_path / f"{DECODER}.onnx").graph
    names = {value.name for value in graph.inputs}
    assert {contract.CACHE_LENGTH, contract.CACHE_WRITE_INDEX, contract.past_key(0)}.isdisjoint(names)
    assert [value.name for value in graph.outputs] == [contract.LOGITS]
    assert not [node.name for node in graph if node.op_type in ("Attention", "TensorScatter")]


def test_errors_of_openvino_name_the_graph(built, paged):
    wrong, start = normal(1, 9, built.spec.language.hidden_size + 1), np.zeros(1, np.int64)
    with pytest.raises(GraphError, match=DECODER):
        paged.decoder(1, 16).step(wrong, np.arange(9)[None], start, start + 9, np.array([[8]]))


def test_an_operator_that_attends_otherwise_is_not_used(built, tmp_path, monkeypatch):
    from r1v_export.targets.openvino.runtime import paged_attention

    open_paged(built, tmp_path)
    paged_attention.require_paged_attention.cache_clear()
    monkeypatch.setattr(paged_attention, "_difference", lambda *_: 0.5)
    try:
        with pytest.raises(CapabilityError, match="paged attention") as error:
            OpenVinoTarget().open_decoder(tmp_path, built.folder, built.spec)
    finally:
        paged_attention.require_paged_attention.cache_clear()
    assert "results differ by 0.5" in str(error.value.found)


def test_a_library_without_the_operator_is_not_used(monkeypatch):
    from r1v_export.targets.openvino.library import ov
    from r1v_export.targets.openvino.runtime import paged_attention

    paged_attention.require_paged_attention.cache_clear()
    monkeypatch.delattr(ov.op, "_PagedAttentionExtension")
    try:
        with pytest.raises(CapabilityError, match="paged attention") as error:
            paged_attention.require_paged_attention(2, 64, paged_attention.Attention("f32", "f32"))
    finally:
        paged_attention.require_paged_attention.cache_clear()
    assert "_PagedAttentionExtension" in str(error.value.found)
