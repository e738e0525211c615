"""The written-out operators, against numpy loops and transformers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers.models.internvl.modeling_internvl import InternVLVisionRMSNorm
from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm, apply_rotary_pos_emb

from r1v_export.reference import operators


def test_rms_norm_is_torchs_in_float32():
    x, weight = torch.randn(3, 5, 16), torch.randn(16)
    torch.testing.assert_close(operators.rms_norm(x, weight, 1e-5), F.rms_norm(x, (16,), weight, 1e-5))


@pytest.mark.parametrize("oracle_class", [InternVLVisionRMSNorm, Qwen2RMSNorm])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rms_norm_rounds_to_the_input_type_before_the_weight(oracle_class, dtype):
    torch.manual_seed(0)
    x, oracle = torch.randn(64, 32, dtype=dtype), oracle_class(32, eps=1e-6).to(dtype)
    torch.nn.init.normal_(oracle.weight, mean=1.0)
    ours = operators.rms_norm(x, oracle.weight, 1e-6)
    assert ours.dtype == dtype
    assert torch.equal(ours, oracle(x))
    rounded_last = F.rms_norm(x.float(), (32,), oracle.weight.float(), 1e-6).to(dtype)
    assert not torch.equal(ours, rounded_last)


def test_rms_norm_in_half_precision_does_not_overflow():
    x = torch.full((1, 8), 300.0, dtype=torch.float16)  # 300^2 is beyond float16
    torch.testing.assert_close(operators.rms_norm(x, torch.ones(8, dtype=torch.float16), 1e-6), torch.ones_like(x))


def test_rotary_embedding_is_that_of_transformers():
    torch.manual_seed(0)
    query = torch.randn(2, 3, 5, 8)
    positions_BS = torch.tensor([[0, 1, 2, 3, 4], [7, 8, 9, 10, 11]])
    angles = torch.outer(torch.arange(16).float(), 10_000 ** -(torch.arange(0, 8, 2) / 8))
    whole = torch.cat((angles, angles), dim=-1)[positions_BS]
    expected, _ = apply_rotary_pos_emb(query, query, whole.cos(), whole.sin())
    ours = operators.rotary_embedding(query, angles.cos(), angles.sin(), positions_BS)
    torch.testing.assert_close(ours, expected)


def test_each_rows_new_keys_go_to_its_own_slots():
    cache, new = torch.randn(3, 2, 10, 4), torch.randn(3, 2, 3, 4)
    write_index = [0, 7, 4]
    expected = cache.clone()
    for row, start in enumerate(write_index):
        expected[row, :, start : start + 3] = new[row]
    before = cache.clone()
    assert torch.equal(operators.update_cache(cache, new, torch.tensor(write_index)), expected)
    assert torch.equal(cache, before)


def numpy_attention(q, keys, values):
    """One query over its visible keys."""
    scores = keys @ q / np.sqrt(q.shape[-1])
    weights = np.exp(scores - scores.max())
    return weights / weights.sum() @ values


def test_cached_attention_is_causal_grouped_and_blind_to_unused_slots():
    rng = np.random.default_rng(0)
    batch, heads, kv_heads, seq, capacity, dim = 3, 4, 2, 3, 12, 8
    q = rng.standard_normal((batch, heads, seq, dim)).astype(np.float32)
    keys, values = rng.standard_normal((2, batch, kv_heads, capacity, dim)).astype(np.float32)
    lengths = [3, 7, 12]
    for row, length in enumerate(lengths):
        keys[row, :, length:] = values[row, :, length:] = 1e4
    expected = np.zeros_like(q)
    for row, length in enumerate(lengths):
        for head in range(heads):
            group = head // (heads // kv_heads)
            for n in range(seq):
                visible = length - seq + n + 1
                expected[row, head, n] = numpy_attention(
                    q[row, head, n], keys[row, group, :visible], values[row, group, :visible]
                )
    ours = operators.cached_attention(*map(torch.from_numpy, (q, keys, values)), torch.tensor(lengths))
    np.testing.assert_allclose(ours.numpy(), expected, atol=1e-5)


def test_tokens_of_each_row_are_taken_in_any_order_and_as_often_as_asked_for():
    h = np.arange(24.0).reshape(3, 4, 2)
    index = np.array([[0, 1], [3, 2], [1, 1]])
    taken = operators.take_tokens(torch.from_numpy(h), torch.from_numpy(index))
    np.testing.assert_array_equal(taken, np.take_along_axis(h, index[..., None], axis=1))
