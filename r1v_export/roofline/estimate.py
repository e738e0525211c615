"""The roofline: how long a device needs at least for what was counted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from r1v_export.roofline.counts import Cost, by_layer
from r1v_export.roofline.devices import DeviceSpec


@dataclass(frozen=True)
class LayerTime:
    """A layer's costs, and the least time that a device needs for them.

    compute_s and memory_s are what the matrix units alone and the memory alone would need; seconds is the sum over the
    layer's operators of the larger one.
    """

    layer: str
    arithmetic: tuple[str, ...]
    flops: int
    weight_bytes: int
    activation_bytes: int
    cache_bytes: int
    compute_s: float
    memory_s: float
    seconds: float

    @property
    def bound(self) -> str:
        """What limits the layer: "compute" or "memory"."""
        return "compute" if self.compute_s > self.memory_s else "memory"


def layer_times(costs: Sequence[Cost], device: DeviceSpec) -> list[LayerTime]:
    """One row per layer, in the graph's order."""
    return [_layer_time(layer, members, device) for layer, members in by_layer(costs).items()]


def total(rows: Sequence[LayerTime], name: str = "all") -> LayerTime:
    """The sum of all rows."""
    return LayerTime(
        name,
        tuple(dict.fromkeys(kind for row in rows for kind in row.arithmetic)),
        flops=sum(row.flops for row in rows),
        weight_bytes=sum(row.weight_bytes for row in rows),
        activation_bytes=sum(row.activation_bytes for row in rows),
        cache_bytes=sum(row.cache_bytes for row in rows),
        compute_s=sum(row.compute_s for row in rows),
        memory_s=sum(row.memory_s for row in rows),
        seconds=sum(row.seconds for row in rows),
    )


def folded(rows: Sequence[LayerTime]) -> list[tuple[LayerTime, int]]:
    """Rows that follow each other and differ in nothing but the layer's number are one, with how many they are."""
    result: list[tuple[LayerTime, int]] = []
    for row in rows:
        if result and _same(result[-1][0], row):
            first, count = result[-1]
            result[-1] = first, count + 1
        else:
            result.append((row, 1))
    return result


def _same(one: LayerTime, other: LayerTime) -> bool:
    return replace(one, layer=_stem(one.layer)) == replace(other, layer=_stem(other.layer))


def _stem(layer: str) -> str:
    """A layer's name without its number."""
    return layer.rpartition(".")[0]


def _layer_time(layer: str, costs: Sequence[Cost], device: DeviceSpec) -> LayerTime:
    compute = [cost.flops / device.flops_per_s(cost.arithmetic) for cost in costs]
    memory = [cost.bytes / device.bytes_per_s for cost in costs]
    return LayerTime(
        layer,
        tuple(dict.fromkeys(cost.arithmetic for cost in costs if cost.flops)),
        sum(cost.flops for cost in costs),
        sum(cost.weight_bytes for cost in costs),
        sum(cost.activation_bytes for cost in costs),
        sum(cost.cache_bytes for cost in costs),
        sum(compute),
        sum(memory),
        sum(max(pair) for pair in zip(compute, memory, strict=True)),
    )
