"""`r1v-export inspect BUNDLE --target T` and `--roofline GPU`: what was built, and how fast it could be."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click

from r1v_export.cli.output import print_json, table
from r1v_export.errors import UsageError

_SHOWN_LAYERS = 12


def show_engine(folder: Path, target: str, format_: str) -> None:
    """Print the plans of a TensorRT engine.

    Raises:
        UsageError: the target's engines have no plans to look into.
    """
    from r1v_export.bundle import ENGINES, Bundle
    from r1v_export.targets.tensorrt.build.inspection import engine_facts
    from r1v_export.targets.tensorrt.library import DISTRIBUTIONS

    name = Bundle.open(folder).target(target)
    if name not in DISTRIBUTIONS:
        raise UsageError(
            f"An engine of {name} is graphs and files that other tools read.",
            where=folder / ENGINES / name,
            expected=" or ".join(DISTRIBUTIONS),
            found=name,
        )
    facts = engine_facts(folder / ENGINES / name)
    if format_ == "json":
        print_json(facts)
    else:
        click.echo("\n\n".join(_plan_text(plan, values) for plan, values in facts.items()))


def _plan_text(name: str, facts: dict[str, Any]) -> str:
    from r1v_export.progress import size

    rows = [
        ("library", facts["library"]),
        ("GPUs", "compute capability " + ", ".join(map(str, facts["compute_capabilities"]))),
        ("plan", f"{size(facts['plan_bytes'])}, {facts['plan_over_weights']} times its weights"),
        ("profiles", "; ".join(facts["profiles"])),
        ("attention", facts["attention"]),
        ("products", _counts(facts["products"])),
        ("kernels", f"{_counts(facts['kernels'])}; {facts['fused_nodes']} nodes fused away"),
    ]
    layers = facts["layers"]
    shown = [f"  {layer['kind']:16} {_nodes(layer['nodes']) or layer['name']}" for layer in layers[:_SHOWN_LAYERS]]
    more = [f"  ... {len(layers) - len(shown)} more with --format json"] if len(layers) > len(shown) else []
    return "\n".join([name, table(rows), *shown, *more])


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items()) or "none"


def _nodes(nodes: Iterable[str]) -> str:
    names = list(nodes)
    return names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else "") if names else ""


def show_roofline(folder: Path, device_name: str, report: Path | None, format_: str) -> None:
    """Print what a GPU would need for a bundle's graphs at its peak rates; write the page if asked to."""
    from r1v_export.bundle import Bundle
    from r1v_export.roofline.devices import DEVICES, device
    from r1v_export.roofline.report import facts, to_html
    from r1v_export.roofline.workloads import workloads

    chosen, bundle = device(device_name), Bundle.open(folder)
    costs = {workload.name: workload.costs(bundle.graphs) for workload in workloads(bundle.spec)}
    if report is not None:
        title = f"{bundle.manifest.source.name}, {bundle.manifest.precision}"
        others = [each for each in DEVICES.values() if each is not chosen]
        _write(report, to_html(title, costs, [chosen, *others]))
    if format_ == "json":
        print_json(facts(costs, chosen))
    else:
        click.echo("\n\n".join(_workload_text(name, costs[name], chosen.name) for name in costs))


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


def _write(path: Path, page: str) -> None:
    try:
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise UsageError("The page cannot be written.", where=path, found=error) from error
