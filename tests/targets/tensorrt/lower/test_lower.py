"""Lowered graphs compute what the standard ones do, in ONNX Runtime, which runs both."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from r1v_export import contract
from r1v_export.targets.tensorrt.lower import lower
from r1v_export.targets.tensorrt.lower.explicit_mask import ExplicitMask
from tests.targets.tensorrt.graphs import run
from tests.tiny_models import tiny_spec

CAPACITY = 12


def test_the_lowered_decoder_gives_the_same_logits_and_cache_for_rows_at_different_places(graphs) -> None:
    language, random = tiny_spec().language, np.random.default_rng(0)
    written = np.array([0, 5])
    cache = (2, language.num_kv_heads, CAPACITY, language.head_dim)
    names = [name(layer) for layer in range(language.num_layers) for name in (contract.past_key, contract.past_value)]
    feeds = {
        contract.INPUTS_EMBEDS: random.standard_normal((2, 3, language.hidden_size), dtype=np.float32),
        contract.POSITION_IDS: written[:, None] + np.arange(3),
        contract.CACHE_WRITE_INDEX: written,
        contract.CACHE_LENGTH: written + 3,
        contract.LOGITS_INDEX: np.array([[0, 2], [1, 0]]),
        **{name: random.standard_normal(cache, dtype=np.float32) for name in names},
    }
    standard, lowered = (ir.load(graphs / "decoder.onnx") for _ in range(2))
    lower(lowered, CAPACITY)
    expected, found = run(graphs, standard, feeds), run(graphs, lowered, feeds)
    assert list(found) == list(expected)
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, atol=1e-6, err_msg=name)


def test_the_lowered_decoder_has_a_static_cache_and_no_mask_left_to_the_engine(graphs) -> None:
    model = ir.load(graphs / "decoder.onnx")
    lower(model, CAPACITY)
    assert contract.CACHE_LENGTH not in [value.name for value in model.graph.inputs]
    attentions = [node for node in model.graph if node.op_type == "Attention"]
    assert all(len(node.inputs) == 4 and "is_causal" not in node.attributes for node in attentions)
    shapes = [value.shape for value in model.graph.inputs if str(value.name).startswith("past")]
    assert all(shape[2] == CAPACITY for shape in shapes)
    masks = [node for node in model.graph if node.op_type == "LessOrEqual"]
    assert len(masks) == 1


def test_a_mask_needs_a_static_cache(graphs) -> None:
    with pytest.raises(ir.passes.PreconditionError, match="Attention"):
        ExplicitMask().call(ir.load(graphs / "decoder.onnx"))
