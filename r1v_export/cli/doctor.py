"""`r1v-export doctor`: what this machine has, what each target needs, and what to type to get it."""

from __future__ import annotations

import importlib.util
import platform
import shutil
from importlib import metadata
from pathlib import Path
from typing import Any

import click

from r1v_export.cli.output import common_options, print_json, table

CORE = ("torch", "onnx", "onnx-ir", "onnxscript", "safetensors", "tokenizers", "numpy", "pillow", "pydantic")

TARGET_NEEDS: dict[str, tuple[str, str, str]] = {
    "onnxruntime": ("onnxruntime", "onnxruntime", "pip install 'r1v-export[onnxruntime]'"),
    "tensorrt": ("tensorrt", "tensorrt", "pip install 'r1v-export[tensorrt]' (not beside tensorrt-llm)"),
    "tensorrt-rtx": ("tensorrt_rtx", "tensorrt-rtx-cu13", "pip install 'r1v-export[tensorrt-rtx]'"),
    "tensorrt-llm": (
        "tensorrt_llm",
        "tensorrt-llm",
        "checkpoints are written without it; engines: pip install 'r1v-export[tensorrt-llm]' in an environment of its "
        "own (it pins TensorRT 10.13)",
    ),
}
"""Target -> module it imports, distribution, and how to get it."""


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
    rows = [(name, "ready" if t["ready"] else t["why"], t["fix"] or "") for name, t in facts["targets"].items()]
    click.echo("\ntargets\n" + table(rows))


def collect() -> dict[str, Any]:
    """Facts of this machine; a missing package is a fact and no error."""
    return {
        "machine": _machine(),
        "packages": {name: _version(name) or "missing" for name in CORE},
        "targets": {name: _target(name) for name in TARGET_NEEDS},
    }


def _machine() -> dict[str, str]:
    import psutil

    from r1v_export.pipeline.provenance import device_name
    from r1v_export.progress import size

    memory, disk = psutil.virtual_memory(), shutil.disk_usage(Path.cwd())
    return {
        "python": platform.python_version(),
        "system": platform.platform(terse=True),
        "cpu": f"{device_name('cpu').removeprefix('cpu: ')}, {psutil.cpu_count()} cores",
        "memory": f"{size(memory.available)} of {size(memory.total)} free",
        "disk": f"{size(disk.free)} of {size(disk.total)} free in {Path.cwd()}",
        "gpu": _gpu(),
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


def _target(name: str) -> dict[str, Any]:
    """Whether a target is in this version and its packages are here."""
    from r1v_export.targets.registry import TARGETS

    module, distribution, fix = TARGET_NEEDS[name]
    if name not in TARGETS:
        return {"ready": False, "why": "planned, not in this version", "fix": None}
    if importlib.util.find_spec(module) is None:
        return {"ready": False, "why": f"{distribution} is not installed", "fix": fix}
    return {"ready": True, "why": None, "fix": None, "providers": _providers(name)}


def _providers(name: str) -> list[str]:
    if name != "onnxruntime":
        return []
    import onnxruntime

    return list(onnxruntime.get_available_providers())
