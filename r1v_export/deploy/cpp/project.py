"""Writes a C++ project that answers from a bundle with libr1v."""

from __future__ import annotations

import os
from pathlib import Path

from r1v_export.bundle import Bundle
from r1v_export.deploy.folder import fill_templates, require_new
from r1v_export.deploy.libr1v import libr1v_target
from r1v_export.files import require_writable
from r1v_export.version import VERSION

TEMPLATES = Path(__file__).parent / "templates"


def write_project(bundle: Bundle, out: Path) -> list[Path]:
    """Write a project for CMake that opens the bundle where it lies, and return its files.

    Args:
        out: a folder that does not exist, or is empty.

    Raises:
        UsageError: `out` holds something or cannot be written to, or libr1v runs no engine of the bundle.
    """
    require_new(out, bundle.folder)
    libr1v_target(bundle)
    require_writable(out, "name another one with -o")
    return fill_templates(TEMPLATES, out, {"version": VERSION, "bundle": _cpp_literal(bundle.folder.absolute())})


def _cpp_literal(path: Path) -> str:
    """A path between the quotes of a C++ string: the file system's bytes, those but letters and the like in octal."""
    plain = b"/._-+=,:@~ "
    return "".join(
        chr(byte) if bytes([byte]).isalnum() or byte in plain else f"\\{byte:03o}" for byte in os.fsencode(path)
    )
