"""Two bundles side by side: how they were made, what is in them, how near they are to PyTorch."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from r1v_export.bundle import REPORT, Bundle
from r1v_export.diff.tensors import TensorDifference, first_difference
from r1v_export.parity.report import JSON_FILE, read_report
from r1v_export.parity.schema import ParityReport

_TOKENS = "tokens"
_OF_ANSWERS = ("prefill", "decode", _TOKENS)
"""Boundaries whose metrics tell how near answers are; those of the last are of whole answers, and say so by their
names."""


@dataclass(frozen=True)
class Row:
    """One fact of both bundles; None where a bundle has no such thing."""

    name: str
    first: Any
    second: Any

    @property
    def equal(self) -> bool:
        """Whether it is the same in both."""
        return bool(self.first == self.second)


@dataclass(frozen=True)
class FileDifferences:
    """Files by their paths inside the bundles."""

    equal: int
    differing: tuple[str, ...]
    first_only: tuple[str, ...]
    second_only: tuple[str, ...]


@dataclass(frozen=True)
class BundleDiff:
    """All of it. Every table holds what is equal, too."""

    first: str
    second: str
    """The folders."""
    tables: Mapping[str, tuple[Row, ...]]
    """Title -> rows: source, settings, tools, sizes, parity."""
    files: FileDifferences
    tensor: TensorDifference | None
    """The first that differs, in the order of the data flow; of graphs and engines that both have."""

    @property
    def equal(self) -> bool:
        """Whether both hold the same files by the hashes of their manifests, made in the same way."""
        files = self.files
        same_files = not (files.differing or files.first_only or files.second_only)
        return same_files and all(row.equal for rows in self.tables.values() for row in rows)


def compare_bundles(first: Bundle, second: Bundle) -> BundleDiff:
    """Compare two bundles by their manifests, build files and reports; of their weights until one tensor differs.

    Raises:
        BundleError, CheckpointError, OSError: a file of either cannot be read.
    """
    facts = {
        "source": _source,
        "settings": _settings,
        "tools": lambda bundle: dict(bundle.manifest.tools),
        "sizes": _sizes,
        "parity": _parity,
    }
    tables = {title: _rows(of(first), of(second)) for title, of in facts.items()}
    tables["sizes"] = tuple(sorted(tables["sizes"], key=_place))
    return BundleDiff(
        first=str(first.folder),
        second=str(second.folder),
        tables=tables,
        files=_files(first, second),
        tensor=first_difference(first, second),
    )


def _rows(first: Mapping[str, Any], second: Mapping[str, Any]) -> tuple[Row, ...]:
    names = [*first, *(name for name in second if name not in first)]
    return tuple(Row(name, first.get(name), second.get(name)) for name in names)


def _source(bundle: Bundle) -> dict[str, Any]:
    source = bundle.manifest.source
    files = {f"sha256 of {name}": entry.sha256 for name, entry in sorted(source.files.items())}
    return {"name": source.name, "kind": source.kind, "revision": source.revision, **files}


def _settings(bundle: Bundle) -> dict[str, Any]:
    manifest = bundle.manifest
    return {
        "producer": manifest.producer,
        "command": manifest.command,
        "device": manifest.device,
        **_flat(bundle.config.model_dump(mode="json")),
    }


def _flat(values: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Nested settings by dotted names."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{before}{name}.") if isinstance(value, dict) and value else {f"{before}{name}": value}
    return flat


def _sizes(bundle: Bundle) -> dict[str, int]:
    """Bytes by folder of the bundle, engines apart."""
    sizes: defaultdict[str, int] = defaultdict(int)
    for path, entry in sorted(bundle.manifest.files.items()):
        folders = path.split("/")[:-1]
        sizes["/".join(folders[: 2 if folders[:1] == ["engines"] else 1]) or "documents"] += entry.size
    return {"all": sum(sizes.values()), **sizes}


def _place(row: Row) -> tuple[bool, bool, str]:
    """Where sizes of a folder stand, whichever bundle has it: all, documents, then by name."""
    return row.name != "all", row.name != "documents", row.name


def _parity(bundle: Bundle) -> dict[str, Any]:
    """Verdicts, and of each report what tells how near the answers are."""
    manifest = bundle.manifest
    verdicts = {**manifest.parity, **manifest.image_parity, **manifest.decoder_parity}
    facts: dict[str, Any] = {f"{engine}: gate": verdict for engine, verdict in verdicts.items()}
    for path in sorted(bundle.manifest.files):
        if path.startswith(f"{REPORT}/") and path.endswith(f"/{JSON_FILE}"):
            report = read_report((bundle.folder / path).parent)
            facts |= {f"{report.candidate}, {report.gate}: {name}": value for name, value in _metrics(report).items()}
    return facts


def _metrics(report: ParityReport) -> dict[str, Any]:
    known = {boundary.name: boundary.metrics for boundary in report.boundaries}
    metrics = {
        name if boundary == _TOKENS else f"{boundary} {name}": value
        for boundary in _OF_ANSWERS
        for name, value in known.get(boundary, {}).items()
        if name.endswith(("_kl", "_agreement"))
    }
    scored = [sample.candidate_correct for sample in report.samples if sample.candidate_correct is not None]
    return metrics | ({"correct answers": f"{sum(scored)} of {len(scored)}"} if scored else {})


def _files(first: Bundle, second: Bundle) -> FileDifferences:
    one, other = first.manifest.files, second.manifest.files
    both = sorted(one.keys() & other.keys())
    differing = tuple(path for path in both if one[path] != other[path])
    return FileDifferences(
        equal=len(both) - len(differing),
        differing=differing,
        first_only=tuple(sorted(one.keys() - other.keys())),
        second_only=tuple(sorted(other.keys() - one.keys())),
    )
