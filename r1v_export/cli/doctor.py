"""`r1v-export doctor`: what this machine has, what each target needs, and what to type to get it."""

from __future__ import annotations

import importlib.util
import platform
import shutil
from importlib import metadata
from pathlib import Path
from typing import TypedDict

import click

from r1v_export import build_extra
from r1v_export.cli.output import common_options, print_json, table

CORE = ("torch", "onnx", "onnx-ir", "onnxscript", "safetensors", "tokenizers", "numpy", "pillow", "pydantic")


class TargetFacts(TypedDict):
    """What a target finds on this machine, and what it lacks."""

    ready: bool
    why: str | None
    fix: str | None
    found: dict[str, str]


class MachineFacts(TypedDict):
    """All that `doctor` shows."""

    machine: dict[str, str]
    packages: dict[str, str]
    targets: dict[str, TargetFacts]


@click.command(short_help="Show what this machine has.")
@common_options
def command(format_: str) -> None:
    """Show what this machine has and what each target still needs."""
    facts = collect()
    if format_ == "json":
        print_json(facts)
        return
    click.echo(table(facts["machine"].items()))
    click.echo("\npackages\n" + table(facts["packages"].items()))
    rows = [(name, *_status(target)) for name, target in facts["targets"].items()]
    click.echo("\ntargets\n" + table(rows))


def collect() -> MachineFacts:
    """Facts of this machine; a missing package is a fact and no error."""
    return {
        "machine": _machine(),
        "packages": {name: _version(name) or "missing" for name in CORE},
        "targets": _targets(),
    }


def _machine() -> dict[str, str]:
    import psutil

    from r1v_export.cpus import thread_count
    from r1v_export.pipeline.provenance import device_name
    from r1v_export.progress import size

    memory, disk = psutil.virtual_memory(), shutil.disk_usage(Path.cwd())
    return {
        "python": platform.python_version(),
        "system": platform.platform(terse=True),
        "cpu": f"{device_name('cpu').removeprefix('cpu: ')}, {psutil.cpu_count()} cores",
        "threads": str(thread_count()),
        "memory": f"{size(memory.available)} of {size(memory.total)} free",
        "disk": f"{size(disk.free)} of {size(disk.total)} free in {Path.cwd()}",
        "gpu": _gpu(),
        "builds": "yes" if build_extra.missing_module() is None else f"no, it only answers: {build_extra.install()}",
    }


def _gpu() -> str:
    if importlib.util.find_spec("torch") is None:
        return "unknown (torch is missing)"
    import torch

    if not torch.cuda.is_available():
        return "none" if torch.version.cuda else "none (this torch is built for the CPU)"
    names = (torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))
    return ", ".join(names)


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _targets() -> dict[str, TargetFacts]:
    """Every target that the registry knows: what it finds here, and what it lacks."""
    from r1v_export.errors import R1VError
    from r1v_export.targets import registry
    from r1v_export.targets.entry_points import names

    facts: dict[str, TargetFacts] = {}
    for name in names():
        try:
            found = registry.get_target(name).readiness()
        except R1VError as error:
            facts[name] = {"ready": False, "why": f"{error.what} {error.found}", "fix": error.fix, "found": {}}
        else:
            facts[name] = {
                "ready": found.lacks is None,
                "why": found.lacks,
                "fix": found.fix,
                "found": dict(found.found),
            }
    return facts


def _status(target: TargetFacts) -> tuple[str, str]:
    found = "; ".join(f"{name} {value}" for name, value in target["found"].items())
    return ("ready", found) if target["ready"] else (target["why"] or "", target["fix"] or found)
