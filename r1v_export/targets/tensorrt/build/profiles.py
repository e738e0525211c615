"""Optimization profiles: the ranges of shapes that an engine takes, from the contract's symbols."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from r1v_export.errors import UsageError
from r1v_export.targets.tensorrt.config import TensorRTConfig

Shape = tuple[int, ...]

VISION_SYMBOL, BATCH, SEQ, LOGIT_POSITIONS = "tiles", "batch", "seq", "logit_positions"


@dataclass(frozen=True)
class Range:
    """Sizes that one symbol takes within a profile; kernels are chosen for `opt`."""

    min: int
    opt: int
    max: int


Profile = Mapping[str, Range]
"""Symbol -> its range."""


def tile_profiles(config: TensorRTConfig) -> list[Profile]:
    """One for each range of tile counts, at its best where the range is full."""
    return [{VISION_SYMBOL: Range(min, max, max)} for min, max in config.tile_profiles]


def decoder_profiles(config: TensorRTConfig, max_positions: int) -> list[Profile]:
    """Steps of any length, at its best for one full step of a single sequence; and, where asked for, one of its own for
    decoding, one new token of each sequence. Both compute the logits of one token per sequence, all that a runner asks
    for: a wider range would cost memory and faster kernels."""
    longest = min(config.max_prefill, decoder_capacity(config, max_positions))
    each = {BATCH: Range(1, 1, config.max_batch), LOGIT_POSITIONS: Range(1, 1, 1)}
    decode: list[Profile] = [{**each, SEQ: Range(1, 1, 1)}] if config.decode_profile else []
    return [{**each, SEQ: Range(1, longest, longest)}, *decode]


def decoder_capacity(config: TensorRTConfig, max_positions: int) -> int:
    """Cache slots per sequence: those of the config, at most the model's positions."""
    return min(config.capacity, max_positions)


def shapes(profile: Profile, dims: Sequence[str | int], where: str) -> tuple[Shape, Shape, Shape]:
    """Least, best and most of a tensor whose shape mixes symbols and sizes.

    Raises:
        UsageError: the profile does not say how large a symbol is, or says it in the wrong order.
    """
    ranges = [Range(dim, dim, dim) if isinstance(dim, int) else _range(profile, dim, where) for dim in dims]
    return (
        tuple(each.min for each in ranges),
        tuple(each.opt for each in ranges),
        tuple(each.max for each in ranges),
    )


def _range(profile: Profile, symbol: str, where: str) -> Range:
    found = profile.get(symbol)
    if found is None:
        raise UsageError(
            "A profile leaves a dimension open.",
            where=where,
            expected=f"a range for {symbol}",
            found=", ".join(profile) or "no range at all",
            fix=f"add {symbol} to the profile, or omit the profiles",
        )
    if not 1 <= found.min <= found.opt <= found.max:
        raise UsageError(
            "A profile's range is out of order.",
            where=f"{where}: {symbol}",
            expected="1 <= least <= best <= most",
            found=f"{found.min}, {found.opt}, {found.max}",
            fix="order the three numbers",
        )
    return found


def profile_for(profiles: Sequence[Profile], sizes: Mapping[str, int]) -> int | None:
    """The number of the narrowest profile that takes these sizes; None where there is none."""
    fitting = [
        (sum(each.max - each.min for each in profile.values()), index)
        for index, profile in enumerate(profiles)
        if all(each.min <= sizes[symbol] <= each.max for symbol, each in profile.items())
    ]
    return min(fitting)[1] if fitting else None
