"""The decoder without logits: this needs no OpenVINO."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx_ir as ir
import pytest

from r1v_export import contract
from r1v_export.targets.openvino.boundary import cache_pairs
from r1v_export.targets.openvino.lower import lower
from tests.targets.openvino.lower.graph_session import session

RNG = np.random.default_rng(0)


@pytest.fixture
def lowered(built) -> ir.Model:
    model = ir.load(built.graphs / "decoder.onnx")
    lower(model, logits=False)
    return model


def test_keys_and_values_are_all_that_is_left(lowered, built):
    assert [value.name for value in lowered.graph.outputs] == [new for _, new in cache_pairs(built.spec.sizes.layers)]
    assert contract.LOGITS_INDEX not in {value.name for value in lowered.graph.inputs}


def test_the_head_and_the_last_mlp_are_gone(lowered, built):
    whole = ir.load(built.graphs / "decoder.onnx")
    lower(whole)
    count = Counter(node.op_type for node in lowered.graph)
    assert (count["Attention"], count["Softmax"]) == (built.spec.sizes.layers - 1, 0)
    weights = [{name for name, value in model.graph.initializers.items()} for model in (whole, lowered)]
    assert weights[1] < weights[0]
    last = f"layers.{built.spec.sizes.layers - 1}."
    assert any("mlp" in name and last in name for name in weights[0])
    assert not any("mlp" in name and last in name for name in weights[1])


@pytest.mark.parametrize(("write_index", "seq"), [(0, 4), (5, 3)])
def test_new_slots_are_those_of_the_standard_graph(lowered, built, write_index, seq):
    sizes, index = built.spec.sizes, np.array([write_index])
    cache = {
        past: RNG.standard_normal((1, sizes.kv_heads, 9, sizes.head_dim)).astype(np.float32)
        for past, _ in cache_pairs(sizes.layers)
    }
    feeds = {
        contract.INPUTS_EMBEDS: RNG.standard_normal((1, seq, sizes.hidden)).astype(np.float32),
        contract.POSITION_IDS: index[:, None] + np.arange(seq),
        contract.CACHE_WRITE_INDEX: index,
    }
    last = {contract.CACHE_LENGTH: index + seq, contract.LOGITS_INDEX: np.array([[seq - 1]])}
    expected = session(ir.load(built.graphs / "decoder.onnx"), built.graphs).run(None, feeds | cache | last)[1:]
    ours = session(lowered, built.graphs)
    taken = {each.name for each in ours.get_inputs()}
    found = ours.run(None, {name: value for name, value in (feeds | cache).items() if name in taken})
    for new, present in zip(found, expected, strict=True):
        np.testing.assert_allclose(new, present[:, :, write_index : write_index + seq], rtol=0, atol=2e-5)


def test_a_graph_without_logits_stays_as_it_is(built):
    one, other = (ir.load(built.graphs / "vision.onnx") for _ in range(2))
    lower(one)
    lower(other, logits=False)
    assert [node.op_type for node in one.graph] == [node.op_type for node in other.graph]
