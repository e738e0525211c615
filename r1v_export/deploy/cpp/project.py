"""Writes a C++ project that answers from a bundle with libr1v."""

from __future__ import annotations

import os
from pathlib import Path

from r1v_export.bundle import Bundle
from r1v_export.deploy.folder import fill_templates, require_new
from r1v_export.errors import UsageError
from r1v_export.files import require_writable
from r1v_export.targets import registry
from r1v_export.version import VERSION

TEMPLATES = Path(__file__).parent / "templates"


def write_project(bundle: Bundle, out: Path) -> list[Path]:
    """Write a project for CMake that opens the bundle where it lies, and return its files.

    Args:
        out: a folder that does not exist, or is empty.

    Raises:
        UsageError: `out` holds something or cannot be written to, or libr1v runs no engine of the bundle.
    """
    require_new(out)
    _require_engine(bundle)
    require_writable(out, "name another one with -o")
    return fill_templates(TEMPLATES, out, {"version": VERSION, "bundle": _cpp_literal(bundle.folder.absolute())})


def _require_engine(bundle: Bundle) -> None:
    """Refuse a bundle that libr1v cannot answer from.

    Raises:
        UsageError: it has no engine, or only those of other targets.
    """
    runs = [target.name for target in registry.loadable() if target.runs_in_libr1v]
    if not set(runs) & set(bundle.targets):
        raise UsageError(
            "libr1v runs no engine of this bundle.",
            where=bundle.folder,
            expected=" or ".join(runs),
            found=", ".join(bundle.targets) or "no engine",
            fix=f"build the model with: r1v-export build MODEL --target {runs[0]} -o FOLDER",
        )


def _cpp_literal(path: Path) -> str:
    """A path between the quotes of a C++ string: the file system's bytes, those but letters and the like in octal."""
    plain = b"/._-+=,:@~ "
    return "".join(
        chr(byte) if bytes([byte]).isalnum() or byte in plain else f"\\{byte:03o}" for byte in os.fsencode(path)
    )
