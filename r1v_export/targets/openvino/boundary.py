"""The boundary of the lowered decoder, where it is not the contract's."""

from __future__ import annotations

from collections.abc import Mapping

from r1v_export import contract


def new_key(layer: int | str) -> str:
    """Name of the output that holds a layer's keys of the new tokens alone, [batch, kv_heads, seq, head_dim]."""
    return f"new_key_values.{layer}.key"


def new_value(layer: int | str) -> str:
    """Name of the output that holds a layer's values of the new tokens alone, [batch, kv_heads, seq, head_dim]."""
    return f"new_key_values.{layer}.value"


def cache_pairs(layers: int) -> list[tuple[str, str]]:
    """(past, new) names of every cache tensor, in the order of the decoder's inputs."""
    new = [name(layer) for layer in range(layers) for name in (new_key, new_value)]
    return list(zip([past for past, _ in contract.cache_pairs(layers)], new, strict=True))


PROMPT_TOKENS = 64
"""New tokens of a row from which on it is a prompt's, which may have a graph of its own: it takes 0.9 of the time of
the other one for so many, and from 104 tokens on 0.8 (0.5B). A decoder whose graph for steps takes one token
(`DecoderGraphs.one_token`) runs the graph for prompts for two tokens or more."""
DOMAIN, PAGED_ATTENTION = "r1v_export", "PagedAttention"
"""The node that the runtime makes OpenVINO's operator of."""

PAST_LENS, SUBSEQUENCE_BEGINS, BLOCK_INDICES, BLOCK_INDICES_BEGINS, MAX_CONTEXT_LEN = (
    "past_lens",
    "subsequence_begins",
    "block_indices",
    "block_indices_begins",
    "max_context_len",
)
BLOCK_TABLE: Mapping[str, int] = {
    PAST_LENS: 1,
    SUBSEQUENCE_BEGINS: 1,
    BLOCK_INDICES: 1,
    BLOCK_INDICES_BEGINS: 1,
    MAX_CONTEXT_LEN: 0,
}
"""Inputs of the paged decoder -> rank, int32, by the names and in the order of OpenVINO's operator.

Of each sequence: the tokens that its blocks hold; where its new tokens begin among all, and where the last one's end;
its blocks, one sequence's after the other's; where its blocks begin among them, and where the last one's end. Of all:
the tokens, new ones included, of the longest one.
"""


def pool_pairs(layers: int) -> list[tuple[str, str]]:
    """Names of the inputs that hold each layer's keys and values, [blocks, kv_heads, slots of a block, head_dim]."""
    return [(f"key_cache.{layer}", f"value_cache.{layer}") for layer in range(layers)]
