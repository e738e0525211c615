"""The operators that PyTorch has no single standard form for, written out for reading.

Each has one ONNX operator of the default domain as its counterpart; `exporters.operators` puts those in these
functions' place while a graph is traced, so the modules call them as `operators.name(...)`.

Shape letters: B batch, S new tokens, P logit positions, C cache capacity, H heads, K key-value heads, D head dim.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Root-mean-square norm of x [..., E]: in float32, cast back to the dtype of x, *then* times the weight."""
    x_fp32 = x.float()
    normed = x_fp32 * torch.rsqrt(x_fp32.square().mean(-1, keepdim=True) + eps)
    return normed.to(x.dtype) * weight


def rotary_embedding(x_BHSD: Tensor, cos: Tensor, sin: Tensor, position_ids_BS: Tensor) -> Tensor:
    """Rotate the halves (x1, x2) of each head by its position's angles; `cos`, `sin` are tables [positions, D/2]."""
    cos_B1SD = cos[position_ids_BS].unsqueeze(1).to(x_BHSD.dtype)
    sin_B1SD = sin[position_ids_BS].unsqueeze(1).to(x_BHSD.dtype)
    half = x_BHSD.shape[-1] // 2
    x1, x2 = x_BHSD[..., :half], x_BHSD[..., half:]
    return torch.cat((x1 * cos_B1SD - x2 * sin_B1SD, x2 * cos_B1SD + x1 * sin_B1SD), dim=-1)


def update_cache(cache_BKCD: Tensor, new_BKSD: Tensor, write_index_B: Tensor) -> Tensor:
    """A cache with row b's new keys or values written at write_index[b] ... write_index[b] + S - 1."""
    seq = new_BKSD.shape[2]
    slots_BS = write_index_B[:, None] + torch.arange(seq, device=new_BKSD.device)
    index = slots_BS[:, None, :, None].expand_as(new_BKSD)
    return cache_BKCD.scatter(2, index, new_BKSD)


def cached_attention(q_BHSD: Tensor, k_BKCD: Tensor, v_BKCD: Tensor, cache_length_B: Tensor) -> Tensor:
    """Causal attention of S new queries over a cache whose first `cache_length` slots are in use.

    The new tokens are the last S of those, so the n-th query sees slots 0 ... cache_length - S + n. Scale is
    D ** -0.5. Returns [B, H, S, D].
    """
    seq, capacity = q_BHSD.shape[2], k_BKCD.shape[2]
    device = q_BHSD.device
    last_visible_BS = cache_length_B[:, None] - seq + torch.arange(seq, device=device)
    visible_BSC = torch.arange(capacity, device=device) <= last_visible_BS[..., None]
    return F.scaled_dot_product_attention(q_BHSD, k_BKCD, v_BKCD, attn_mask=visible_BSC[:, None], enable_gqa=True)


def take_tokens(h_BSE: Tensor, index_BP: Tensor) -> Tensor:
    """The tokens at `index` of each row: [B, S, E] -> [B, P, E]."""
    return h_BSE[torch.arange(h_BSE.shape[0], device=h_BSE.device)[:, None], index_BP]
