"""`r1v-export inspect BUNDLE --target T` and `--roofline GPU`: what was built, and how fast it could be."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from r1v_export.cli.output import print_json, table, wrapped_table, write_page

if TYPE_CHECKING:
    from r1v_export.bundle import Bundle
    from r1v_export.targets.interface import EngineDescription

_SHOWN_LAYERS = 12


def show_engine(folder: Path, target: str, format_: str) -> None:
    """Print what is known of the parts of an engine.

    Raises:
        UsageError: the bundle has no such target, or its engines cannot be looked into.
    """
    from r1v_export.bundle import ENGINES, Bundle
    from r1v_export.targets.registry import engine_describer

    describer = engine_describer(Bundle.open(folder), target)
    parts = describer.describe(folder / ENGINES / describer.name)
    if format_ == "json":
        print_json({name: part.facts for name, part in parts.items()})
    else:
        click.echo("\n\n".join(_part_text(name, part) for name, part in parts.items()))


def _part_text(name: str, part: EngineDescription) -> str:
    layers = part.layers[:_SHOWN_LAYERS]
    shown = [wrapped_table((f"  {kind}", layer) for kind, layer in layers)] if layers else []
    hidden = len(part.layers) - len(layers)
    more = [f"  ... {hidden} more with --format json"] if hidden else []
    return "\n".join([name, wrapped_table(part.rows), *shown, *more])


def show_roofline(folder: Path, device_name: str, report: Path | None, format_: str) -> None:
    """Print what a GPU would need for a bundle's graphs at its peak rates; write the page if asked to."""
    from r1v_export.bundle import Bundle
    from r1v_export.cli.made_by import made_by
    from r1v_export.roofline.devices import DEVICES, device
    from r1v_export.roofline.report import facts, to_html
    from r1v_export.roofline.workloads import workloads

    chosen, bundle = device(device_name), Bundle.open(folder)
    costs = {workload.name: workload.costs(bundle.graphs) for workload in workloads(bundle.spec)}
    if report is not None:
        others = [each for each in DEVICES.values() if each is not chosen]
        write_page(report, to_html(_about(bundle), made_by(), costs, [chosen, *others]))
    if format_ == "json":
        print_json(facts(costs, chosen))
    else:
        click.echo("\n\n".join(_workload_text(name, costs[name], chosen.name) for name in costs))
        if report is not None:
            click.echo(f"report: {report}")


def _about(bundle: Bundle) -> dict[str, str]:
    """Which bytes the page is about, as the manifest has them."""
    from r1v_export.bundle import GRAPHS
    from r1v_export.parity.provenance import HashedFiles

    manifest = bundle.manifest
    revision = f", revision {manifest.source.revision}" if manifest.source.revision else ""
    graphs = {name: entry for name, entry in manifest.files.items() if name.startswith(f"{GRAPHS}/")}
    return {
        "Model": manifest.source.name + revision,
        "Precision": manifest.precision,
        "Checkpoint": f"SHA-256 {HashedFiles.of(manifest.source.files).sha256}",
        "Graphs": f"SHA-256 {HashedFiles.of(graphs).sha256}",
        "Built by": manifest.command,
        "Built with": ", ".join(f"{name} {version}" for name, version in manifest.tools.items()),
    }


def _workload_text(name: str, costs: Any, device_name: str) -> str:
    from r1v_export.roofline.devices import device
    from r1v_export.roofline.estimate import folded, layer_times, total
    from r1v_export.roofline.report import amount, milliseconds

    rows = layer_times(costs, device(device_name))
    lines = [
        (
            row.layer + (f" and {count - 1} like it" if count > 1 else ""),
            amount(row.flops),
            amount(row.weight_bytes + row.activation_bytes + row.cache_bytes),
            milliseconds(row.seconds),
            row.bound,
        )
        for row, count in [*folded(rows), (total(rows), 1)]
    ]
    return f"{name} on {device_name}\n" + table(lines, ("layer", "FLOP", "bytes", "ms", "bound by"))
