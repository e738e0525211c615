"""What `diff` found, as a page that needs no other file and no network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from r1v_export import pages
from r1v_export.diff.compare import BundleDiff
from r1v_export.pages import MadeBy
from r1v_export.progress import size
from r1v_export.quoting import printable


def to_html(diff: BundleDiff, made_by: MadeBy) -> str:
    """The page."""
    environment = pages.environment(Path(__file__).parent / "templates")
    environment.filters["shown"] = lambda value, title: printable(shown(value, title))
    return environment.get_template("diff.html.j2").render(diff=diff, made_by=made_by)


def shown(value: Any, title: str) -> str:
    """A value of a table, by the table's title, as people read it."""
    if value is None:
        return "-"
    if title == "sizes":
        return size(value)
    return f"{value:.3g}" if isinstance(value, float) else str(value)
