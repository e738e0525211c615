"""Q4_K_M's types against published files: how many tensors of each type llama.cpp's loader counts in them."""

from __future__ import annotations

from collections import Counter

import pytest

from r1v_export.targets.gguf.write.mixture import EMBEDDING, HEAD, own_type, takes_more_bits


def types(layers: int, hidden: int, intermediate: int, *, tied: bool) -> Counter[str]:
    """Types of all matrices of a Qwen model, whose heads together are as wide as its hidden states."""
    rows = dict.fromkeys(("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up"), hidden)
    rows["ffn_down"] = intermediate
    names = {f"blk.{layer}.{name}.weight": columns for layer in range(layers) for name, columns in rows.items()}
    names |= {EMBEDDING: hidden} if tied else {EMBEDDING: hidden, HEAD: hidden}
    return Counter(own_type(name, columns, "Q4_K_M", layers, tied=tied) for name, columns in names.items())


@pytest.mark.parametrize(
    ("sizes", "tied", "published"),
    [
        ((64, 5120, 27648), False, {"Q4_K": 385, "Q6_K": 65}),  # Qwen2.5-32B
        ((36, 2560, 9728), True, {"Q4_K": 216, "Q6_K": 37}),  # Qwen3-4B
        ((24, 896, 4864), False, {"Q5_0": 133, "Q8_0": 13, "Q4_K": 12, "Q6_K": 12}),  # Qwen2.5-0.5B-Instruct
    ],
)
def test_a_q4_k_m_file_has_the_types_of_published_ones(sizes, tied, published) -> None:
    assert types(*sizes, tied=tied) == published


def test_layers_with_more_bits_are_the_first_the_last_and_every_third_between() -> None:
    chosen = [layer for layer in range(28) if takes_more_bits(layer, 28)]
    assert chosen == [0, 1, 2, 5, 8, 11, 14, 17, 20, 23, 24, 25, 26, 27]


def test_values_of_a_model_of_80_layers_have_five_bits_at_least() -> None:
    kinds = {own_type(f"blk.{layer}.attn_v.weight", 8192, "Q4_K_M", 80) for layer in range(80)}
    assert kinds == {"Q5_K", "Q6_K"}
    assert own_type("blk.11.attn_v.weight", 8160, "Q4_K_M", 80) == "Q5_1"


def test_rows_that_no_block_divides_are_half_precision() -> None:
    assert own_type("blk.0.ffn_up.weight", 100, "Q4_K_M", 4) == "F16"
    assert own_type("v.blk.0.ffn_up.weight", 100, "Q8_0", 4) == "F16"
    assert own_type("v.blk.0.ffn_up.weight", 96, "Q8_0", 4) == "Q8_0"
    assert own_type("v.blk.0.ffn_up.weight", 100, "F16", 4) == "F16"
