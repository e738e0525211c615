"""The reference's operators as the ONNX operators they stand for, put in place while a graph is traced."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from r1v_export.contract import OPSET
from r1v_export.reference import operators


def _onnx(op_type: str, *inputs: Tensor | None, like: Tensor, **attributes: Any) -> Tensor:
    """One standard ONNX node whose result has the shape and dtype of `like`."""
    return torch.onnx.ops.symbolic(op_type, inputs, attributes, dtype=like.dtype, shape=like.shape, version=OPSET)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Emit RMSNormalization over the last axis of x [..., E] with a weight [E]."""
    return _onnx("RMSNormalization", x, weight, like=x, axis=-1, epsilon=eps)


def rotary_embedding(x_BHSD: Tensor, cos: Tensor, sin: Tensor, position_ids_BS: Tensor) -> Tensor:
    """Emit RotaryEmbedding of x_BHSD with tables cos and sin [positions, D / 2]."""
    tables = (cos.to(x_BHSD.dtype), sin.to(x_BHSD.dtype))
    return _onnx("RotaryEmbedding", x_BHSD, *tables, position_ids_BS, like=x_BHSD)


def update_cache(cache_BKCD: Tensor, new_BKSD: Tensor, write_index_B: Tensor) -> Tensor:
    """Emit TensorScatter, which writes the new keys or values into the cache at `write_index_B`."""
    return _onnx("TensorScatter", cache_BKCD, new_BKSD, write_index_B, like=cache_BKCD, axis=2)


def cached_attention(q_BHSD: Tensor, k_BKCD: Tensor, v_BKCD: Tensor, cache_length_B: Tensor) -> Tensor:
    """Emit causal Attention over the first `cache_length_B` slots of the cache."""
    no_mask_or_past = (None, None, None)
    return _onnx("Attention", q_BHSD, k_BKCD, v_BKCD, *no_mask_or_past, cache_length_B, like=q_BHSD, is_causal=1)


def take_tokens(h_BSE: Tensor, index_BP: Tensor) -> Tensor:
    """Emit GatherND, which takes the tokens [B, P, E] at `index_BP` of each sequence."""
    taken_BPE = h_BSE.new_empty((*index_BP.shape, h_BSE.shape[-1]))
    return _onnx("GatherND", h_BSE, index_BP[..., None], like=taken_BPE, batch_dims=1)


_TRACED = (rms_norm, rotary_embedding, update_cache, cached_attention, take_tokens)


@contextmanager
def onnx_operators() -> Iterator[None]:
    """Let the reference modules emit ONNX operators instead of computing."""
    eager = {op.__name__: getattr(operators, op.__name__) for op in _TRACED}
    try:
        for op in _TRACED:
            setattr(operators, op.__name__, op)
        yield
    finally:
        for name, op in eager.items():
            setattr(operators, name, op)
