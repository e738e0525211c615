"""The folder of a deployment: a new one, filled with templates."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from r1v_export.errors import UsageError


def require_new(out: Path, bundle: Path) -> None:
    """Refuse a folder that has something in it already, or lies in the bundle.

    Raises:
        UsageError: it is a file, is not empty, or is in the bundle, whose manifest does not name its files.
    """
    if out.resolve().is_relative_to(bundle.resolve()):
        raise UsageError(
            "The output is inside the bundle: `verify` refuses files that its manifest does not name.",
            where=out,
            expected=f"a folder outside {bundle}",
            fix="name another one with -o",
        )
    if out.exists() and not out.is_dir():
        raise UsageError("The output is not a folder.", where=out, found="a file", fix="name a new folder with -o")
    if out.exists() and any(out.iterdir()):
        raise UsageError("The folder is not empty.", where=out, fix="name a new one with -o")


def fill_templates(templates: Path, out: Path, facts: Mapping[str, str]) -> list[Path]:
    """Write every file of a folder of templates, with each `@name@` replaced by its fact, and return their paths.

    Bytecode is none: pip compiles what it installs, templates in Python too.
    """
    written = []
    for template in sorted(templates.rglob("*")):
        if template.is_file() and template.parent.name != "__pycache__":
            text = template.read_text("utf-8")
            for name, value in facts.items():
                text = text.replace(f"@{name}@", value)
            written.append(write_text(out / template.relative_to(templates), text))
    return written


def write_text(path: Path, text: str) -> Path:
    """Write a file, with the folders that it lies in, and return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8", newline="\n")
    return path
