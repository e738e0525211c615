"""The boundary of the lowered decoder, where it is not the contract's."""

from __future__ import annotations

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
