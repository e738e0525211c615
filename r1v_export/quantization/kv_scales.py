"""Scales of a layer's quantized key-value cache: its keys (after the rotary embedding) and its values.

The one place that knows which types a cache can be stored in and what they ask of their scales:

    fp8     E4M3; keys and values each have their own scale
    int8    keys and values share that of the larger: the engines that store it (TensorRT-LLM) have one, and on an even
            quantization a scale that grows later costs the smaller of the two as many bits as it grows by
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from r1v_export.quantization.quantized_linear import scale_for

CacheType = Literal["fp8", "int8"]
ONE_SCALE: frozenset[CacheType] = frozenset({"int8"})
"""Types whose keys and values share a scale."""

OUTLIER_RATIO = 16.0
"""How far a key channel may stand above the median one, and with one scale keys above values. FP8 has three bits of
mantissa, so its rounding error grows with the value: a channel this large adds more noise to every attention score than
all of 200 ordinary ones together. INT8 leaves the ordinary channels 8 values on either side of zero."""


@dataclass(frozen=True)
class KVScales:
    """The cache holds round(x / scale) in `kind`; key and value are float32 numbers."""

    kind: CacheType
    key: float
    value: float
    warning: str | None = field(default=None, compare=False)
    """Set if such a cache may cost accuracy (as in Qwen2.5's last layers)."""

    def items(self) -> tuple[tuple[str, float], tuple[str, float]]:
        """Both, with the names that they have everywhere."""
        return ("key", self.key), ("value", self.value)


def key_name(block: str) -> str:
    """The key of the statistics of a decoder layer's cached keys, after the rotary embedding."""
    return f"{block}.self_attn.key"


def value_name(block: str) -> str:
    """The key of the statistics of a decoder layer's cached values."""
    return f"{block}.self_attn.value"


def kv_scales(block: str, kind: CacheType, key_absmax: Tensor, value_absmax: Tensor) -> KVScales:
    """Scales from the largest magnitudes per channel, [kv_heads * head_dim] each.

    Args:
        block: the layer's name, for the warning.
    """
    key, value = key_absmax.max(), value_absmax.max()
    warnings = [_outliers(block, kind, key_absmax)]
    if kind in ONE_SCALE:
        warnings.append(_dwarfed(block, kind, float(key), float(value)))
        key = value = torch.maximum(key, value)
    return KVScales(
        kind=kind,
        key=float(scale_for(key, kind)),
        value=float(scale_for(value, kind)),
        warning=" ".join(warning for warning in warnings if warning) or None,
    )


def _outliers(block: str, kind: CacheType, key_absmax: Tensor) -> str | None:
    largest, median = float(key_absmax.max()), float(key_absmax.median())
    if largest <= OUTLIER_RATIO * median:
        return None
    ratio = f"{largest / median:.0f} times the median channel's" if median else "all others being near zero"
    return (
        f"Keys of {block} reach {largest:.3g} in channel {int(key_absmax.argmax())}, {ratio}: "
        f"an {kind.upper()} key-value cache may cost accuracy here; check its parity, or build with kv_cache: null."
    )


def _dwarfed(block: str, kind: CacheType, key: float, value: float) -> str | None:
    """With one scale, the smaller of the two has few quantized values left."""
    if max(key, value) <= OUTLIER_RATIO * min(key, value):
        return None
    return (
        f"Keys of {block} reach {key:.3g}, values {value:.3g}, and an {kind.upper()} cache has one scale for both: "
        "the smaller ones keep few quantized values; check its parity, or build with kv_cache: null."
    )
