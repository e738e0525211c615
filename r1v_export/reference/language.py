"""Qwen2: the decoder, with an explicit static key-value cache.

Parameter names are the published checkpoints'. Shape letters: B batch, S new tokens, P logit positions, C cache
capacity, H heads, K key-value heads, D head dim, E hidden size, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from r1v_export.count import Count
from r1v_export.errors import CapabilityError
from r1v_export.model_spec import LanguageSpec
from r1v_export.reference import operators
from r1v_export.reference.rotary import inverse_frequencies
from r1v_export.reference.vision import RMSNorm


class LayerCache(NamedTuple):
    """Keys and values of one layer, [B, K, C, D] each."""

    key: Tensor
    value: Tensor


@dataclass(frozen=True)
class CacheStep:
    """Where the new tokens of a step go in the cache, per sequence; all int64.

    `position_ids` [B, S] numbers each sequence's tokens from 0, as slots of the cache do; padding at the end of a
    row just counts on. `write_index` [B] is the slot of the row's first new token, `length` [B] the slots in use after
    the step, padding included: write_index + S. Rows are independent of each other.
    """

    position_ids: Tensor
    write_index: Tensor
    length: Tensor


class Rotary(NamedTuple):
    """cos and sin tables [positions, D/2], float32."""

    cos: Tensor
    sin: Tensor


def rotary_tables(spec: LanguageSpec, positions: int) -> Rotary:
    """Cosines and sines of position * inverse frequency, computed in float32 as transformers does.

    Raises:
        CapabilityError: more positions than `max_position_embeddings` under dynamic scaling, whose angles then depend
            on the length of each sequence, so that no table holds them.
    """
    scaling = spec.rope_scaling
    if scaling is not None and scaling.type == "dynamic" and positions > spec.max_position_embeddings:
        raise CapabilityError(
            "Dynamic rope scaling changes every angle with the length of a sequence beyond max_position_embeddings.",
            where="llm_config.rope_scaling",
            expected=f"at most {Count(spec.max_position_embeddings, 'position')}",
            found=positions,
            fix="use a shorter context",
        )
    angles = torch.outer(torch.arange(positions).float(), inverse_frequencies(spec))
    factor = 1.0 if scaling is None else scaling.attention_factor
    return Rotary(
        _checked(angles.cos(), angles.double().cos()) * factor, _checked(angles.sin(), angles.double().sin()) * factor
    )


def _checked(values: Tensor, exact: Tensor) -> Tensor:
    """`values`, corrected where they are no float32 rounding of `exact`.

    MKL's float32 cosine was once seen wrong by 1.5e-4 in the half of a table that one of its threads computed.
    """
    return torch.where((values - exact).abs() > 2**-21, exact.float(), values)


class Attention(nn.Module):
    """Grouped-query attention with rotary embedding and an optional static cache."""

    def __init__(self, spec: LanguageSpec) -> None:
        super().__init__()
        self.head_dim = spec.head_dim
        query, key_value = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
        self.q_proj = nn.Linear(spec.hidden_size, query)
        self.k_proj = nn.Linear(spec.hidden_size, key_value)
        self.v_proj = nn.Linear(spec.hidden_size, key_value)
        self.o_proj = nn.Linear(query, spec.hidden_size, bias=False)
        # What the cache keeps of keys and values: all, unless a quantized cache's rounding is put here.
        self.cached_key, self.cached_value = nn.Identity(), nn.Identity()

    def forward(
        self,
        x_BSE: Tensor,
        rotary: Rotary,
        step: CacheStep,
        cache: LayerCache | None,
        wanted_BP: Tensor | None = None,
    ) -> tuple[Tensor, LayerCache | None]:
        q_BHSD, k_BKSD, v_BKSD = (
            proj(x_BSE).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        q_BHSD = operators.rotary_embedding(q_BHSD, *rotary, step.position_ids)
        k_BKSD = self.cached_key(operators.rotary_embedding(k_BKSD, *rotary, step.position_ids))
        v_BKSD = self.cached_value(v_BKSD)
        if cache is None:
            attended = F.scaled_dot_product_attention(q_BHSD, k_BKSD, v_BKSD, is_causal=True, enable_gqa=True)
        else:
            cache = LayerCache(
                operators.update_cache(cache.key, k_BKSD, step.write_index),
                operators.update_cache(cache.value, v_BKSD, step.write_index),
            )
            attended = operators.cached_attention(q_BHSD, *cache, step.length)
        attended_BSE = attended.transpose(1, 2).flatten(2)
        return self.o_proj(_taken(attended_BSE, wanted_BP)), cache


class MLP(nn.Module):
    """SwiGLU feed-forward network on x [..., hidden]."""

    def __init__(self, spec: LanguageSpec) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(spec.hidden_size, spec.intermediate_size, bias=False)
        self.up_proj = nn.Linear(spec.hidden_size, spec.intermediate_size, bias=False)
        self.down_proj = nn.Linear(spec.intermediate_size, spec.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return output


class DecoderLayer(nn.Module):
    """Pre-norm layer: attention, then MLP, each with a residual connection.

    Every token's keys and values go into the cache; where `wanted` is given, hidden states are computed only of the
    tokens at these indices [B, P], as the last layer's are for the logits.
    """

    def __init__(self, spec: LanguageSpec) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(spec.hidden_size, spec.rms_norm_eps)
        self.self_attn = Attention(spec)
        self.post_attention_layernorm = RMSNorm(spec.hidden_size, spec.rms_norm_eps)
        self.mlp = MLP(spec)

    def forward(
        self,
        h_BSE: Tensor,
        rotary: Rotary,
        step: CacheStep,
        cache: LayerCache | None,
        wanted_BP: Tensor | None = None,
    ) -> tuple[Tensor, LayerCache | None]:
        attended, cache = self.self_attn(self.input_layernorm(h_BSE), rotary, step, cache, wanted_BP)
        h_BSE = _taken(h_BSE, wanted_BP) + attended
        return h_BSE + self.mlp(self.post_attention_layernorm(h_BSE)), cache


def _taken(h_BSE: Tensor, wanted_BP: Tensor | None) -> Tensor:
    return h_BSE if wanted_BP is None else operators.take_tokens(h_BSE, wanted_BP)


class Qwen2(nn.Module):
    """The `model.` part of a Qwen2 checkpoint."""

    def __init__(self, spec: LanguageSpec) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(spec.vocab_size, spec.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(spec) for _ in range(spec.num_layers))
        self.norm = RMSNorm(spec.hidden_size, spec.rms_norm_eps)


class LanguageModel(nn.Module):
    """inputs_embeds -> logits, with the cache passed in and handed back explicitly."""

    def __init__(self, spec: LanguageSpec) -> None:
        super().__init__()
        self.spec = spec
        self.model = Qwen2(spec)
        self.lm_head = nn.Linear(spec.hidden_size, spec.vocab_size, bias=False)
        if spec.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    def empty_cache(self, batch: int, capacity: int) -> list[LayerCache]:
        """Allocate a zeroed key and value cache [batch, kv heads, capacity, head_dim] per layer, of the weights'
        dtype."""
        shape = (batch, self.spec.num_kv_heads, capacity, self.spec.head_dim)
        like = self.lm_head.weight
        return [LayerCache(like.new_zeros(shape), like.new_zeros(shape)) for _ in self.model.layers]

    def forward(
        self,
        inputs_embeds_BSE: Tensor,
        rotary: Rotary,
        step: CacheStep,
        cache: list[LayerCache] | None,
        logits_index_BP: Tensor | None = None,
    ) -> tuple[Tensor, list[LayerCache] | None]:
        """One step over S new tokens.

        Without a cache the whole sequence is attended causally (training). Returns the logits at
        `logits_index` of each row [B, P, V], or of every token [B, S, V] where it is None, and the updated cache.
        """
        h_BSE, present = inputs_embeds_BSE, []
        for index, layer in enumerate(self.model.layers):
            wanted_BP = logits_index_BP if layer is self.model.layers[-1] else None
            h_BSE, updated = layer(h_BSE, rotary, step, None if cache is None else cache[index], wanted_BP)
            present.append(updated)
        return self.lm_head(self.model.norm(h_BSE)), None if cache is None else present
