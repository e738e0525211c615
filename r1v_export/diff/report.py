"""What `diff` found, as a page that needs no other file and no network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from r1v_export import pages
from r1v_export.diff.compare import BundleDiff, Row
from r1v_export.pages import MadeBy
from r1v_export.parity.metric_text import distinct, distinct_shares, share, short
from r1v_export.parity.metrics import METRICS, SHARES
from r1v_export.parity.options import PAIRS
from r1v_export.progress import size


def to_html(diff: BundleDiff, made_by: MadeBy) -> str:
    """The page."""
    environment = pages.environment(Path(__file__).parent / "templates")
    environment.filters["values"] = lambda row, title: [pages.command(value) for value in values(row, title)]
    environment.filters["label"] = label
    files = diff.files
    counts = {
        "differing": len(files.differing),
        "equal": files.equal,
        "in the first alone": len(files.first_only),
        "in the second alone": len(files.second_only),
    }
    return environment.get_template("diff.html.j2").render(
        diff=diff,
        made_by=made_by,
        counts=[f"{count} {what}" for what, count in counts.items() if count],
        pairs=[gate for gate in PAIRS if any(f", {gate}: " in row.name for row in diff.tables.get("parity", ()))],
    )


def label(name: str) -> str:
    """A row's name as people read it: the metric at its end by its label, such as `mean KL (nats)`."""
    before, _, last = name.rpartition(" ")
    return f"{before} {METRICS[last]}".strip() if last in METRICS else name


def values(row: Row, title: str) -> tuple[str, str]:
    """Both values of a row of the table with that title, as people read them. Those that differ never look equal:
    they have as many digits as tell them apart."""
    texts = _shown(row.first, title, row.name), _shown(row.second, title, row.name)
    if row.equal or texts[0] != texts[1]:
        return texts
    if title == "sizes":
        return f"{row.first} B", f"{row.second} B"
    if isinstance(row.first, float) and isinstance(row.second, float):
        return distinct_shares(row.first, row.second) if _is_share(row.name) else distinct(row.first, row.second)
    return texts


def _shown(value: Any, title: str, name: str) -> str:
    if value is None:
        return "none"
    if title == "sizes":
        return size(value)
    if isinstance(value, bool):
        return str(value).lower()
    if _is_share(name):
        return share(value)
    return short(value) if title == "parity" and isinstance(value, float) else str(value)


def _is_share(name: str) -> bool:
    return name.rpartition(" ")[2] in SHARES
