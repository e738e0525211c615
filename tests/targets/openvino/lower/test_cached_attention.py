"""The lowered decoder against the standard one, both in ONNX Runtime: this needs no OpenVINO."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx_ir as ir
import pytest

from r1v_export import contract
from r1v_export.targets.openvino.boundary import cache_pairs
from r1v_export.targets.openvino.lower import lower
from r1v_export.targets.openvino.lower.cached_attention import CachedAttention
from tests.targets.openvino.lower.graph_session import session

RNG = np.random.default_rng(0)


@pytest.fixture
def lowered(built) -> ir.Model:
    model = ir.load(built.graphs / "decoder.onnx")
    lower(model)
    return model


def test_nothing_is_left_that_needs_a_cache_in_the_graph(lowered):
    left = Counter(node.op_type for node in lowered.graph)
    assert left["Attention"] == left["TensorScatter"] == 0
    assert contract.CACHE_LENGTH not in {value.name for value in lowered.graph.inputs}


def test_it_takes_past_slots_and_gives_what_is_new(lowered, built):
    pairs = cache_pairs(built.spec.sizes.layers)
    assert [value.name for value in lowered.graph.outputs] == [contract.LOGITS, *(new for _, new in pairs)]
    assert [past for past, _ in pairs] == [value.name for value in lowered.graph.inputs][4:]


@pytest.mark.parametrize(("write_index", "seq"), [([0, 0], 4), ([5, 3], 1), ([2, 6], 3)])
def test_logits_and_new_slots_are_those_of_the_standard_graph(lowered, built, write_index, seq):
    sizes, capacity, rows = built.spec.sizes, 9, 2
    standard, ours = (session(model, built.graphs) for model in (ir.load(built.graphs / "decoder.onnx"), lowered))
    index = np.array(write_index)
    cache = {
        past: RNG.standard_normal((rows, sizes.kv_heads, capacity, sizes.head_dim)).astype(np.float32)
        for past, _ in cache_pairs(sizes.layers)
    }
    feeds = {
        contract.INPUTS_EMBEDS: RNG.standard_normal((rows, seq, sizes.hidden)).astype(np.float32),
        contract.POSITION_IDS: index[:, None] + np.arange(seq),
        contract.CACHE_WRITE_INDEX: index,
        contract.LOGITS_INDEX: np.tile(np.arange(seq), (rows, 1)),
        **cache,
    }
    expected = standard.run(None, feeds | {contract.CACHE_LENGTH: index + seq})
    found = ours.run(None, feeds)
    np.testing.assert_allclose(found[0], expected[0], rtol=0, atol=2e-5)
    for new, present in zip(found[1:], expected[1:], strict=True):
        written = np.stack([present[row, :, start : start + seq] for row, start in enumerate(write_index)])
        np.testing.assert_allclose(new, written, rtol=0, atol=2e-5)


def test_what_lies_in_slots_that_no_token_sees_changes_nothing(lowered, built):
    sizes, ours = built.spec.sizes, session(lowered, built.graphs)
    feeds = {
        contract.INPUTS_EMBEDS: RNG.standard_normal((1, 1, sizes.hidden)).astype(np.float32),
        contract.POSITION_IDS: np.array([[2]]),
        contract.CACHE_WRITE_INDEX: np.array([2]),
        contract.LOGITS_INDEX: np.array([[0]]),
    }
    logits = []
    for other in (0.0, 1e4):
        cache = np.ones((1, sizes.kv_heads, 5, sizes.head_dim), np.float32)
        cache[:, :, 2:] = other
        logits.append(ours.run([contract.LOGITS], feeds | {past: cache for past, _ in cache_pairs(sizes.layers)})[0])
    np.testing.assert_array_equal(*logits)


def test_a_graph_without_cached_attention_is_left_alone(built):
    vision = ir.load(built.graphs / "vision.onnx")
    before = [node.op_type for node in vision.graph]
    assert not CachedAttention()(vision).modified
    assert [node.op_type for node in vision.graph] == before


def test_attention_of_another_kind_is_refused_by_name(built):
    model = ir.load(built.graphs / "decoder.onnx")
    attention = next(node for node in model.graph if node.op_type == "Attention")
    attention.attributes["softcap"] = ir.AttrFloat32("softcap", 30.0)
    with pytest.raises(ir.passes.PreconditionError, match="softcap"):
        CachedAttention()(model)
