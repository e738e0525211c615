"""`r1v-export doctor`: what this machine has, what each target needs, and what to type to get it."""

from __future__ import annotations

import importlib.util
import platform
import shutil
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any, TypedDict

import click

from r1v_export import build_extra
from r1v_export.cli.output import common_options, print_json, wrapped_table
from r1v_export.count import Count
from r1v_export.gpus import no_gpu
from r1v_export.version import VERSION

CORE = ("torch", "onnx", "onnx-ir", "onnxscript", "safetensors", "tokenizers", "numpy", "pillow", "pydantic")


class TargetFacts(TypedDict):
    """What a target finds on this machine, and what it lacks."""

    ready: bool
    why: str | None
    fix: str | None
    found: dict[str, str]
    versions: dict[str, str]
    """Of the distributions that decide what it writes, and of the one that brings it, as far as they are installed."""


class SpaceFacts(TypedDict):
    """Memory, or a disk."""

    free_bytes: int
    total_bytes: int


class GpuFacts(TypedDict):
    """One GPU that PyTorch sees."""

    name: str
    memory_bytes: int
    compute_capability: str


class MachineFacts(TypedDict):
    """The machine that it runs on."""

    python: str
    system: str
    cpu: str
    cores: int
    threads: dict[str, Any]
    """Of `cpus.thread_count`."""
    memory: SpaceFacts
    disk: SpaceFacts
    folder: str
    """The one that the disk holds: where it runs."""
    gpus: list[GpuFacts]
    no_gpu: str | None
    """Why there is none."""
    builds: bool
    builds_fix: str | None
    """What to type to get what builds need, if they lack anything."""


class Facts(TypedDict):
    """All that `doctor` shows."""

    machine: MachineFacts
    packages: dict[str, str | None]
    """Versions; None of what is missing."""
    targets: dict[str, TargetFacts]


@click.command(short_help="Show what this machine has.")
@common_options
def command(format_: str) -> None:
    """Show what this machine has and what each target still needs."""
    facts = collect()
    if format_ == "json":
        print_json(facts)
        return
    click.echo(wrapped_table(_machine_rows(facts["machine"])))
    click.echo(
        "\npackages\n" + wrapped_table([(name, version or "missing") for name, version in facts["packages"].items()])
    )
    click.echo("\ntargets\n" + wrapped_table([row for name in facts["targets"] for row in _rows(name, facts)]))


def collect() -> Facts:
    """Facts of this machine; a missing package is a fact and no error."""
    return {
        "machine": _machine(),
        "packages": {name: _version(name) for name in CORE},
        "targets": _targets(),
    }


def _machine() -> MachineFacts:
    import psutil

    from r1v_export.cpus import thread_count
    from r1v_export.pipeline.provenance import device_name

    memory, disk = psutil.virtual_memory(), shutil.disk_usage(Path.cwd())
    gpus, no_gpu = _gpus()
    builds = build_extra.missing_module() is None
    return {
        "python": platform.python_version(),
        "system": platform.platform(terse=True),
        "cpu": device_name("cpu").removeprefix("cpu: "),
        "cores": psutil.cpu_count() or 1,
        "threads": asdict(thread_count()),
        "memory": {"free_bytes": memory.available, "total_bytes": memory.total},
        "disk": {"free_bytes": disk.free, "total_bytes": disk.total},
        "folder": str(Path.cwd()),
        "gpus": gpus,
        "no_gpu": no_gpu,
        "builds": builds,
        "builds_fix": None if builds else build_extra.install(),
    }


def _gpus() -> tuple[list[GpuFacts], str | None]:
    """The GPUs, or why there are none."""
    if importlib.util.find_spec("torch") is None:
        return [], "unknown (torch is missing)"
    import torch

    if not torch.cuda.is_available():
        return [], no_gpu()
    found = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return [
        {"name": gpu.name, "memory_bytes": gpu.total_memory, "compute_capability": f"{gpu.major}.{gpu.minor}"}
        for gpu in found
    ], None


def _machine_rows(machine: MachineFacts) -> list[tuple[str, str]]:
    from r1v_export.progress import size

    def space(facts: SpaceFacts) -> str:
        return f"{size(facts['free_bytes'])} of {size(facts['total_bytes'])} free"

    gpus = [
        f"{gpu['name']}, {size(gpu['memory_bytes'])}, compute capability {gpu['compute_capability']}"
        for gpu in machine["gpus"]
    ]
    return [
        ("r1v-export", VERSION),
        ("python", machine["python"]),
        ("system", machine["system"]),
        ("cpu", f"{machine['cpu']}, {Count(machine['cores'], 'core')}"),
        ("threads", f"{machine['threads']['count']} ({machine['threads']['source']})"),
        ("memory", space(machine["memory"])),
        ("disk", f"{space(machine['disk'])} in {machine['folder']}"),
        *(("gpu", gpu) for gpu in gpus or [machine["no_gpu"] or ""]),
        ("builds", "yes" if machine["builds"] else f"no, it only answers: {machine['builds_fix']}"),
    ]


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
            found, tools = registry.get_target(name).readiness(), registry.tools(name)
        except R1VError as error:
            why = f"{error.what} {error.found}"
            facts[name] = {"ready": False, "why": why, "fix": error.fix, "found": {}, "versions": {}}
        else:
            facts[name] = {
                "ready": found.lacks is None,
                "why": found.lacks,
                "fix": found.fix,
                "found": dict(found.found),
                "versions": {tool: version for tool in tools if (version := _version(tool))},
            }
    return facts


def _rows(name: str, facts: Facts) -> list[tuple[str, str, str]]:
    """A target's state and what is here; what it lacks and how to get that, if anything."""
    target = facts["targets"][name]
    here = {**target["versions"], **target["found"]}
    lines = [f"{what} {value}" for what, value in here.items()]
    if not target["ready"]:
        lines = [line for line in (target["why"], target["fix"]) if line] + lines
    first, *others = lines or [""]
    return [(name, "ready" if target["ready"] else "not ready", first), *(("", "", line) for line in others)]
