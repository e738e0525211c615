"""What made a build: tool versions, this package's own sources, and the device."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import platform
from collections.abc import Iterable
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path

from r1v_export.errors import UsageError
from r1v_export.version import VERSION

PACKAGE = Path(__file__).parents[1]

TRACING_TOOLS = ("onnx", "onnx-ir", "onnxscript", "torch")
INPUT_TOOLS = ("jinja2", "numpy", "pillow", "tokenizers")
"""Distributions whose version can change what the stages write; those of a target are its own `tools`."""

_CODE = {".css", ".py", ".j2", ".yaml"}


def tool_versions(names: Iterable[str]) -> dict[str, str]:
    """Versions of Python, of this package, and of those of the named distributions that are installed."""
    versions = {"python": platform.python_version(), "r1v-export": VERSION}
    for name in names:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def code_digest(parts: Iterable[str]) -> str:
    """SHA-256 over some of this package's folders and files, such as `exporters` or `contract.py`.

    A version number alone would let a bundle that was built before a change of the code pass as up to date.
    """
    root, digest = PACKAGE, hashlib.sha256()
    for part in sorted(parts):
        path = root / part
        files = [file for file in path.rglob("*") if file.suffix in _CODE] if path.is_dir() else [path]
        for source in sorted(files):
            digest.update(source.relative_to(root).as_posix().encode() + b"\0" + source.read_bytes() + b"\0")
    return digest.hexdigest()


def utc_now() -> str:
    """The time in ISO 8601, to the second."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def source_date() -> str | None:
    """The date for what must be the same bytes whenever it is made, as `utc_now` writes it: of SOURCE_DATE_EPOCH, the
    variable of https://reproducible-builds.org, in seconds; None where that is not set.

    Raises:
        UsageError: it is no such number.
    """
    text = os.environ.get("SOURCE_DATE_EPOCH", "")
    if not text:
        return None
    try:
        return datetime.fromtimestamp(int(text), timezone.utc).isoformat(timespec="seconds")
    except (ValueError, OverflowError, OSError):
        raise UsageError(
            "SOURCE_DATE_EPOCH is no date.",
            expected="seconds since 1970, such as 1767225600",
            found=text,
            fix="set it to such a number, or unset it",
        ) from None


def device_name(device: str) -> str:
    """The device as people know it: `cpu: <model>` or `cuda: <model>`."""
    if device == "cuda":
        if importlib.util.find_spec("torch") is None:
            return "cuda: unknown (torch is not installed)"
        import torch

        return f"cuda: {torch.cuda.get_device_name()}"
    return f"cpu: {_cpu_model()}"


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
