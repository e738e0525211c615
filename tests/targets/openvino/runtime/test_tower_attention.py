"""Attention of a tower as products: the same numbers as NumPy's, and only where it is the same."""

from __future__ import annotations

import numpy as np
import pytest

from r1v_export.cpus import has_bfloat16_tiles
from tests.targets.openvino.conftest import NEEDS_OPENVINO, make

pytestmark = NEEDS_OPENVINO
HEADS, TOKENS, SIZE = 3, 7, 16
MORE_TOKENS, FULL_KEYS = 513, 544
"""Which fill no tile up, and those that do."""


def attention(key_heads: int = HEADS, mask: np.ndarray | None = None, *, causal: bool = False):
    """A model of one operator, and whether it is one still."""
    from r1v_export.targets.openvino.library import ov
    from r1v_export.targets.openvino.runtime.tower_attention import attend_by_products

    ops = ov.opset13
    shapes = [[-1, heads, TOKENS, SIZE] for heads in (HEADS, key_heads, key_heads)]
    inputs = [ops.parameter(shape, ov.Type.f32) for shape in shapes]
    masks = [] if mask is None else [ops.constant(mask)]
    node = ops.scaled_dot_product_attention(*inputs, *masks, causal=causal)
    node.friendly_name = "attention"
    model = ov.Model([node.output(0)], inputs)
    attend_by_products(model)
    return model, any(each.get_type_name() == "ScaledDotProductAttention" for each in model.get_ops())


def attention_by_tiles(tokens: int, heads: int = HEADS, *, transposed: bool):
    """A model of attention, and the number of its keys."""
    from r1v_export.targets.openvino.library import ov
    from r1v_export.targets.openvino.runtime.tower_attention import attend_by_products

    ops = ov.opset13
    shape = [-1, tokens, heads, SIZE] if transposed else [-1, heads, tokens, SIZE]
    inputs = [ops.parameter(shape, ov.Type.f32) for _ in range(3)]
    operands = [ops.transpose(each, ops.constant([0, 2, 1, 3])) for each in inputs] if transposed else inputs
    attended = ops.scaled_dot_product_attention(*operands, causal=False)
    # What a model ends with stays in float32; behind it is a product that changes nothing.
    model = ov.Model([ops.matmul(attended, ops.constant(np.eye(SIZE, dtype=np.float32)), False, False)], inputs)
    attend_by_products(model, by_tiles=True)
    (softmax,) = (each for each in model.get_ops() if each.get_type_name() == "Softmax")
    return model, softmax.get_output_partial_shape(0)[3].get_length()


def attended_by_numpy(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    scores = np.einsum("bhqd,bhkd->bhqk", q, k) / SIZE**0.5
    weights = np.exp(scores - scores.max(axis=3, keepdims=True))
    return np.einsum("bhqk,bhkd->bhqd", weights / weights.sum(axis=3, keepdims=True), v)


@pytest.mark.parametrize("mask", [None, np.float32(0), np.float32(5)])
def test_numbers_are_those_of_attention(mask) -> None:
    from r1v_export.targets.openvino.library import ov

    model, is_one_still = attention(mask=mask)
    assert not is_one_still
    assert "attention" in {each.friendly_name for each in model.get_ops()}
    q, k, v = np.random.default_rng(0).standard_normal((3, 2, HEADS, TOKENS, SIZE)).astype(np.float32)
    compiled = ov.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    np.testing.assert_allclose(compiled([q, k, v])[0], attended_by_numpy(q, k, v), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("precision", "error"),
    [
        ("f32", 1e-5),
        pytest.param("bf16", 0.02, marks=pytest.mark.skipif(not has_bfloat16_tiles(), reason="needs AMX")),
    ],
)
@pytest.mark.parametrize("transposed", [False, True])
def test_keys_that_fill_a_tile_up_are_seen_by_no_token(precision, error, transposed) -> None:
    from r1v_export.targets.openvino.library import ov

    model, keys = attention_by_tiles(MORE_TOKENS, transposed=transposed)
    assert keys == FULL_KEYS
    # Scores far below 0, where keys of zeros would have all of the weight.
    q, k, v = np.random.default_rng(0).standard_normal((3, 2, HEADS, MORE_TOKENS, SIZE)).astype(np.float32)
    q, k = 3 + q, k - 3
    expected = attended_by_numpy(q, k, v)
    inputs = [each.transpose(0, 2, 1, 3).copy() if transposed else each for each in (q, k, v)]
    found = ov.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": precision})(inputs)[0]
    assert np.linalg.norm(found - expected) < error * np.linalg.norm(expected)


def test_few_keys_are_not_filled_up() -> None:
    assert attention_by_tiles(TOKENS, transposed=True)[1] == TOKENS


def test_the_mask_has_a_row_for_each_head_and_one_head_has_none() -> None:
    """OpenVINO takes one row for a bias of the product, and adds it wrongly in bfloat16."""
    model, _ = attention_by_tiles(MORE_TOKENS, transposed=True)
    (masked,) = (each for each in model.get_ops() if each.get_type_name() == "Add")
    assert masked.input_value(1).get_partial_shape().to_string() == f"[1,{HEADS},1,{FULL_KEYS}]"
    assert attention_by_tiles(MORE_TOKENS, heads=1, transposed=True)[1] == MORE_TOKENS


def test_attention_that_hides_tokens_stays() -> None:
    assert attention(mask=np.zeros((TOKENS, TOKENS), np.float32))[1]
    assert attention(causal=True)[1]


def test_attention_whose_heads_share_keys_stays() -> None:
    assert attention(key_heads=1)[1]


def test_the_tower_has_no_attention_left_but_products(r1v) -> None:
    from r1v_export.targets.openvino.library import ov
    from r1v_export.targets.openvino.runtime.tower_attention import attend_by_products

    model = ov.Core().read_model(r1v.graphs / "vision.onnx")
    kinds = [each.get_type_name() for each in model.get_ops()]
    attend_by_products(model)
    found = [each.get_type_name() for each in model.get_ops()]
    assert kinds.count("ScaledDotProductAttention") == found.count("Softmax") > 0
    assert "ScaledDotProductAttention" not in found


@pytest.mark.parametrize(
    ("matmul", "in_tiles", "expected"),
    [("bfloat16", True, True), ("bfloat16", False, False), ("float32", True, False)],
)
def test_a_tower_attends_by_tiles_where_its_products_are_computed_by_them(
    r1v, tmp_path, monkeypatch, matmul, in_tiles, expected
) -> None:
    from r1v_export.targets.openvino.runtime import model

    engine, found = make(r1v, tmp_path, matmul=matmul), []

    def recorded(graph, *, by_tiles):
        found.append(by_tiles)

    monkeypatch.setattr(model, "has_bfloat16", lambda: True)
    monkeypatch.setattr(model, "has_bfloat16_tiles", lambda: in_tiles)
    monkeypatch.setattr(model, "attend_by_products", recorded)
    opened = engine.open()
    opened.vision(np.zeros((1, 3, *[engine.built.spec.vision.image_size] * 2), np.float32))
    assert found == [expected]
