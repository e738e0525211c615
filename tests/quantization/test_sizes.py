"""Bytes of weights from shapes and schemes alone."""

from __future__ import annotations

import pytest

from r1v_export import contract
from r1v_export.quantization.groups import linear_shapes
from r1v_export.quantization.recipe import load, resolve
from r1v_export.quantization.sizes import checkpoint_bytes, graph_tensors, weight_bytes
from tests.tiny_models import tiny_spec


@pytest.mark.parametrize(
    ("recipe", "bytes_per_weight"), [("fp8", 1.0), ("int8-smoothquant", 1.0), ("int4-rtn", 0.5 + 2 / 128)]
)
def test_quantized_linears_take_the_bytes_of_their_values_and_scales(recipe: str, bytes_per_weight: float) -> None:
    spec = tiny_spec(language={"hidden_size": 128, "head_dim": 32}, projector={"hidden_size": 128})
    schemes = resolve(load(recipe), spec)
    shapes = linear_shapes(spec)
    saved = (2 - bytes_per_weight) * sum(shapes[linear][0] * shapes[linear][1] for linear in schemes)
    assert len(schemes) > 10
    whole, quantized = (sum(weight_bytes(spec, each, "bfloat16").values()) for each in ({}, schemes))
    assert whole - quantized == pytest.approx(saved, abs=len(contract.GRAPHS))


def test_a_tied_embedding_is_in_two_graphs_and_once_in_a_checkpoint() -> None:
    spec = tiny_spec(tie_word_embeddings=True)
    table = spec.language.vocab_size * spec.language.hidden_size
    tensors, sizes = graph_tensors(spec), weight_bytes(spec, {}, "float32")
    assert sum(tensors[contract.EMBED].values()) == table
    assert set(tensors[contract.EMBED]) < set(tensors[contract.DECODER])
    assert checkpoint_bytes(spec, {}, "float32") == sum(sizes.values()) - 4 * table
    assert checkpoint_bytes(tiny_spec(), {}, "float32") == sum(weight_bytes(tiny_spec(), {}, "float32").values())
