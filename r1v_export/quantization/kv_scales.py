"""FP8 scales of a layer's key-value cache: one for the keys (after the rotary embedding), one for the values."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from r1v_export.quantization.linear import scale_for

OUTLIER_RATIO = 16.0
"""How far a key channel may stand above the median one. FP8 has three bits of mantissa, so its rounding error grows
with the value: a channel this large adds more noise to every attention score than all of 200 ordinary ones together."""


@dataclass(frozen=True)
class KVScales:
    """key and value: the cache holds round(x / scale) in E4M3; float32 values."""

    key: float
    value: float
    warning: str | None
    """One sentence where the keys have outliers: FP8 may then cost accuracy (seen with Qwen2.5's last layers)."""


def kv_scales(block: str, key_absmax: Tensor, value_absmax: Tensor) -> KVScales:
    """Scales from the largest magnitudes per channel, [kv_heads * head_dim] each.

    Args:
        block: the layer's name, for the warning.
    """
    return KVScales(
        key=float(scale_for(key_absmax.max(), "fp8")),
        value=float(scale_for(value_absmax.max(), "fp8")),
        warning=_warning(block, key_absmax),
    )


def _warning(block: str, key_absmax: Tensor) -> str | None:
    largest, median = float(key_absmax.max()), float(key_absmax.median())
    if largest <= OUTLIER_RATIO * median:
        return None
    ratio = f"{largest / median:.0f} times the median channel's" if median else "all others being near zero"
    return (
        f"Keys of {block} reach {largest:.3g} in channel {int(key_absmax.argmax())}, {ratio}: "
        "an FP8 key-value cache may cost accuracy here; look at its parity, or build with kv_cache: null."
    )
