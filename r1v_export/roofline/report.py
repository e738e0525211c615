"""The roofline as a page that needs no other file and no network, and as plain values."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from r1v_export import pages
from r1v_export.pages import MadeBy
from r1v_export.roofline.counts import Cost
from r1v_export.roofline.devices import DeviceSpec
from r1v_export.roofline.estimate import LayerTime, folded, layer_times, total


def facts(workloads: Mapping[str, Sequence[Cost]], device: DeviceSpec) -> dict[str, Any]:
    """Plain values for JSON: the device, and every layer of every workload with its total."""
    rows = {name: layer_times(costs, device) for name, costs in workloads.items()}
    return {
        "device": asdict(device),
        "workloads": {
            name: {"layers": [_plain(row) for row in layers], "total": _plain(total(layers))}
            for name, layers in rows.items()
        },
    }


def to_html(
    about: Mapping[str, str], made_by: MadeBy, workloads: Mapping[str, Sequence[Cost]], devices: Sequence[DeviceSpec]
) -> str:
    """One page: times of each workload on each device, then the layers on the first of them.

    Args:
        about: what the page says of the bundle, by name; the model is the first.
    """
    environment = pages.environment(Path(__file__).parent / "templates")
    environment.filters |= {"amount": amount, "ms": milliseconds}
    first = devices[0]
    return environment.get_template("roofline.html.j2").render(
        about=about,
        made_by=made_by,
        devices=devices,
        times={
            name: [total(layer_times(costs, device)).seconds for device in devices] for name, costs in workloads.items()
        },
        first=first,
        layers={name: folded(layer_times(costs, first)) for name, costs in workloads.items()},
        totals={name: total(layer_times(costs, first)) for name, costs in workloads.items()},
    )


def amount(value: float, unit: str = "") -> str:
    """Three digits, a decimal prefix and a unit: `1.23 GB`."""
    for prefix in ("", "k", "M", "G", "T"):
        if value < 999.5:
            return f"{value:.3g} {prefix}{unit}".rstrip()
        value /= 1000
    return f"{value:.3g} P{unit}"


def milliseconds(seconds: float) -> str:
    """Format seconds as milliseconds, see `three_digits`."""
    return three_digits(1e3 * seconds)


def three_digits(value: float) -> str:
    """Three significant digits, and all before the point: `0.0000504`, `23300`, never `2.33e+04`."""
    if 0 < value < 1e-4:
        return f"{value:.{2 - math.floor(math.log10(value))}f}"
    return f"{value:.3g}" if value < 999.5 else f"{value:.0f}"


def _plain(row: LayerTime) -> dict[str, Any]:
    return {**asdict(row), "bound": row.bound}
