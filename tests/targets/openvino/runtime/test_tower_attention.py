"""Attention of a tower as products: the same numbers as NumPy's, and only where it is the same."""

from __future__ import annotations

import numpy as np
import pytest

from tests.targets.openvino.conftest import NEEDS_OPENVINO

pytestmark = NEEDS_OPENVINO
HEADS, TOKENS, SIZE = 3, 7, 16


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


@pytest.mark.parametrize("mask", [None, np.float32(0), np.float32(5)])
def test_numbers_are_those_of_attention(mask) -> None:
    from r1v_export.targets.openvino.library import ov

    model, is_one_still = attention(mask=mask)
    assert not is_one_still
    assert "attention" in {each.friendly_name for each in model.get_ops()}
    q, k, v = np.random.default_rng(0).standard_normal((3, 2, HEADS, TOKENS, SIZE)).astype(np.float32)
    weights = np.exp(np.einsum("bhqd,bhkd->bhqk", q, k) / SIZE**0.5)
    expected = np.einsum("bhqk,bhkd->bhqd", weights / weights.sum(axis=3, keepdims=True), v)
    compiled = ov.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    np.testing.assert_allclose(compiled([q, k, v])[0], expected, rtol=1e-5, atol=1e-6)


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
