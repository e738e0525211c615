"""What `diff` found, as a page that needs no other file and no network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from r1v_export import pages
from r1v_export.diff.compare import BundleDiff
from r1v_export.pages import MadeBy
from r1v_export.parity.metrics import METRICS, SHARES, share
from r1v_export.progress import size


def to_html(diff: BundleDiff, made_by: MadeBy) -> str:
    """The page."""
    environment = pages.environment(Path(__file__).parent / "templates")
    environment.filters["shown"] = lambda value, title, name: pages.command(shown(value, title, name))
    environment.filters["label"] = label
    files = diff.files
    counts = {
        "differing": len(files.differing),
        "equal": files.equal,
        "in the first alone": len(files.first_only),
        "in the second alone": len(files.second_only),
    }
    return environment.get_template("diff.html.j2").render(
        diff=diff, made_by=made_by, counts=[f"{count} {what}" for what, count in counts.items() if count]
    )


def label(name: str) -> str:
    """A row's name as people read it: the metric at its end by its label, such as `mean KL (nats)`."""
    before, _, last = name.rpartition(" ")
    return f"{before} {METRICS[last]}".strip() if last in METRICS else name


def shown(value: Any, title: str, name: str) -> str:
    """A value of a table, by the table's title and the row's name, as people read it."""
    if value is None:
        return "-"
    if title == "sizes":
        return size(value)
    if isinstance(value, bool):
        return str(value).lower()
    if name.rpartition(" ")[2] in SHARES:
        return share(value)
    return f"{value:.3g}" if isinstance(value, float) else str(value)
