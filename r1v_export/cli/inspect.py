"""`r1v-export inspect`: what a checkpoint or a bundle is, without loading it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from r1v_export.cli.output import common_options, print_json, table

if TYPE_CHECKING:
    from r1v_export.checkpoint.quantized.quantized_linears import Quantized
    from r1v_export.model_spec import ModelSpec


@click.command(short_help="Show what a checkpoint, bundle or engine is.")
@click.argument("model")
@click.option("--target", help="Show this engine of a bundle: its layers, types and sizes.")
@click.option("--roofline", "device_name", metavar="GPU", help="Judge a bundle's graphs by the peak rates of H100, ...")
@click.option("--report", type=click.Path(path_type=Path), help="With --roofline: also write a page for all GPUs.")
@click.option("--revision", help="Branch, tag or commit of a hub id.")
@click.option("--offline", is_flag=True, help="Use the hub's local cache only.")
@common_options
def command(
    model: str,
    target: str | None,
    device_name: str | None,
    report: Path | None,
    revision: str | None,
    offline: bool,
    format_: str,
) -> None:
    """Show what MODEL is: a checkpoint (hub id or folder), a bundle, or one engine of it."""
    from r1v_export.cli import inspect_engine
    from r1v_export.manifest import MANIFEST

    if report is not None and device_name is None:
        raise click.UsageError("--report goes with --roofline GPU")
    if device_name is not None:
        inspect_engine.show_roofline(Path(model), device_name, report, format_)
        return
    if target is not None:
        inspect_engine.show_engine(Path(model), target, format_)
        return
    is_bundle = Path(model, MANIFEST).is_file()
    facts = _bundle_facts(Path(model)) if is_bundle else _checkpoint_facts(model, revision, offline)
    if format_ == "json":
        print_json(facts)
    else:
        click.echo(_as_text(facts))


def _checkpoint_facts(model: str, revision: str | None, offline: bool) -> dict[str, Any]:
    from r1v_export.checkpoint.checkpoint import Checkpoint
    from r1v_export.manifest import MANIFEST

    checkpoint = Checkpoint.open(model, revision=revision, offline=offline)
    files = {path.name: path.stat().st_size for path in (*checkpoint.files(), *checkpoint.auxiliary_files())}
    return {
        "what": "checkpoint",
        "name": checkpoint.source.name,
        "kind": checkpoint.source.kind,
        "revision": checkpoint.source.revision,
        **({"quantized": _quantized(checkpoint.quantized)} if checkpoint.quantized else {}),
        "notes": list(checkpoint.notes),
        **_model_facts(checkpoint.spec),
        "files": {name: size for name, size in files.items() if name != MANIFEST},
    }


def _quantized(quantized: Quantized) -> str:
    """The format, and how many linears are stored in which way."""
    counts = Counter(linear.layout.name for linear in quantized.linears.values())
    ways = ", ".join(f"{count} linears {name}" for name, count in counts.items())
    return f"{quantized.format.method}: {ways}" + (", FP8 key-value cache" if quantized.cache_scales else "")


def _bundle_facts(folder: Path) -> dict[str, Any]:
    from r1v_export.bundle import Bundle

    bundle = Bundle.open(folder)
    manifest = bundle.manifest
    return {
        "what": "bundle",
        "name": manifest.source.name,
        "kind": manifest.source.kind,
        "revision": manifest.source.revision,
        **_model_facts(bundle.spec),
        "precision": manifest.precision,
        "targets": list(bundle.targets),
        "parity": manifest.parity,
        "device": manifest.device,
        "command": manifest.command,
        "tools": manifest.tools,
        "files": {path: entry.size for path, entry in sorted(manifest.files.items())},
    }


def _model_facts(spec: ModelSpec) -> dict[str, Any]:
    from r1v_export.pipeline.estimate import graph_parameters

    return {
        "architecture": spec.architecture,
        "parameters": graph_parameters(spec),
        "spec": spec.model_dump(mode="json"),
    }


def _as_text(facts: dict[str, Any]) -> str:
    from r1v_export.progress import size

    plain = [(name, value) for name, value in facts.items() if isinstance(value, str)]
    plain += [("targets", ", ".join(facts["targets"]))] if "targets" in facts else []
    parameters: dict[str, int] = facts["parameters"]
    rows = [*parameters.items(), ("all", sum(parameters.values()))]
    spec = [(part, _one_line(values)) for part, values in facts["spec"].items()]
    files = [(size(size_bytes), name) for name, size_bytes in facts["files"].items()]
    notes = [f"note: {note}" for note in facts.get("notes", ())]
    return "\n\n".join(
        (
            "\n".join((table(plain), *notes)),
            "parameters\n" + table((name, f"{count:,}") for name, count in rows),
            "model\n" + table(spec),
            "files\n" + "\n".join(f"{text:>9}  {name}" for text, name in files),
        )
    )


def _one_line(values: Any) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items()) if isinstance(values, dict) else str(values)
