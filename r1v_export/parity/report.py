"""`report/parity.json` and the page `report/parity.html`, which needs no other file and no network."""

from __future__ import annotations

import base64
import posixpath
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

from markupsafe import Markup

from r1v_export import pages
from r1v_export.count import Count
from r1v_export.errors import BundleError
from r1v_export.files import explain_full_disk
from r1v_export.parity import plots
from r1v_export.parity.diagnosis import LAYERS, kind_of
from r1v_export.parity.figures import NARROW_INCHES, WIDE_INCHES
from r1v_export.parity.metric_text import distinct, limit_text, magnitude, metric_text, share, short
from r1v_export.parity.metrics import METRICS
from r1v_export.parity.ranges import RECORDED
from r1v_export.parity.schema import BoundaryResult, Check, LayerRange, ParityReport, ReasoningFormat, SampleResult
from r1v_export.parity.size_plot import accuracy_by_size
from r1v_export.progress import size
from r1v_export.quantization.mixed_precision.sensitivity import Candidate, SensitivityTable
from r1v_export.quoting import printable
from r1v_export.strict import parse_json

JSON_FILE, HTML_FILE = "parity.json", "parity.html"


_SHOWN_SAMPLES = 12
_SHOWN_LAYERS = 12


class Stage(NamedTuple):
    """One row of the table and one box of the data-flow image; ViT blocks share one, and decoder layers."""

    name: str
    members: list[BoundaryResult]
    checks: list[Check]
    """The members' worst check of each metric."""
    first_bad: bool

    @property
    def passed(self) -> bool:
        """Whether all boundaries of the stage passed."""
        return all(member.passed for member in self.members)


def place_of(report: ParityReport, reports: Sequence[ParityReport]) -> str:
    """Where in the folder of an engine's reports one is: the first directly, another in a folder of its gate's name."""
    return "." if report.gate == reports[0].gate else report.gate


def write_reports(reports: Sequence[ParityReport], folder: Path) -> list[Path]:
    """Write the reports of an engine's gates, which link to each other. Returns the pages."""
    return [write_report(report, folder, reports)[-1] for report in reports]


def write_report(report: ParityReport, folder: Path, reports: Sequence[ParityReport] = ()) -> list[Path]:
    """Write both files into the place of a report's gate, which is made if need be. Returns their paths.

    Args:
        folder: of the engine's reports.
        reports: of all its gates; this one alone if empty.
    """
    reports = reports or (report,)
    folder = folder / place_of(report, reports)
    contents = {JSON_FILE: to_json(report), HTML_FILE: to_html(report, reports)}
    with explain_full_disk(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in contents.items():
            (folder / name).write_text(text, encoding="utf-8", newline="\n")
    return [folder / name for name in contents]


def read_report(folder: Path) -> ParityReport:
    """The report that `write_report` wrote into a folder."""
    path = folder / JSON_FILE
    return parse_json(ParityReport, path.read_bytes(), BundleError, "The parity report is invalid", where=path)


def failed_page(folder: Path) -> Path | None:
    """The page of the first gate that failed, of an engine's reports in a folder; None if none did."""
    failed = (path.parent for path in sorted(folder.rglob(JSON_FILE)) if not read_report(path.parent).passed)
    return next((place / HTML_FILE for place in failed), None)


def to_json(report: ParityReport) -> str:
    """Serialize a report as indented JSON that ends with a newline."""
    return report.model_dump_json(indent=2) + "\n"


Plot = tuple[str, Callable[[ParityReport, float], str | None], str]

_PLOTS: tuple[Plot, ...] = (
    (
        "Error by boundary",
        plots.errors_by_boundary,
        "Each stage on the reference's inputs; end_to_end on the candidate's own.",
    ),
    (
        "Divergence of the next token",
        plots.kl_by_boundary,
        "How far the next token's probabilities are from the reference's, with the limits; 0 where they are the same.",
    ),
    (
        "Error by layer",
        plots.errors_by_layer,
        "Hidden states after each layer; the tower is given the reference's pixels, the decoder its embeddings.",
    ),
    (
        "Error over the answer",
        plots.errors_by_step,
        "Both engines are fed the same tokens, so every step has the same history; fewer samples have a later step. "
        "Gaps: no difference, or no finite number.",
    ),
    (
        "Latency by stage",
        plots.latency_by_stage,
        "Mean over all calls but each stage's first, on the machine of this check; a stage with one call is omitted. "
        "Each stage has its own scale.",
    ),
)
"""Title, drawing and caption of each plot of a whole report."""

_RECORDED = " PyTorch's times include recording how large its tensors become, so that it is faster than shown."


def _plots(report: ParityReport) -> Iterator[Plot]:
    """Those of a report, with what is to be known of its latencies."""
    for title, draw, text in _PLOTS:
        recorded = draw is plots.latency_by_stage and report.gate == "arithmetic" and report.profile in RECORDED
        yield title, draw, text + _RECORDED * recorded


def to_html(report: ParityReport, reports: Sequence[ParityReport] = ()) -> str:
    """The page; it links to those of an engine's other gates, if `reports` are all of them."""
    environment = pages.environment(Path(__file__).parent / "templates")
    environment.filters |= {
        "short": short,
        "engine": plots.engine_name,
        "size": size,
        "share": share,
        "value": metric_text,
        "limit": limit_text,
        "measured": plots.measured_text,
        "distinct": distinct,
        "magnitude": magnitude,
        "visible": visible,
        "printable": printable,
        "data_uri": data_uri,
        "megabytes": megabytes,
        "by_channel": partial(by_channel, report.reasoning),
    }
    return environment.get_template("parity.html.j2").render(
        report=report,
        gates=[GateLink(each, report, reports) for each in reports],
        nearest=nearest_to_limit(report),
        stages=stages(report),
        columns=[name for name in METRICS if any(name in b.metrics for b in report.boundaries)],
        labels=METRICS,
        plots=[(title, text, svg) for title, draw, text in _plots(report) if (svg := at_both_widths(draw, report))],
        shown=shown_samples(report.samples),
        identical=sum(sample.divergence is None for sample in report.samples),
        tokens=sum(sample.tokens for sample in report.samples),
        scored=[sample for sample in report.samples if sample.expected is not None],
        modules=modules(report),
        largest_layers=largest_layers(report),
        sensitivity_plot=at_both_widths(plots.sensitivity, table) if (table := sensitivity_table(report)) else None,
        sizes_plot=at_both_widths(accuracy_by_size, report.bundles),
    )


Drawn = TypeVar("Drawn")


def at_both_widths(plot: Callable[[Drawn, float], str | None], facts: Drawn) -> Markup:
    """A plot for a wide screen and for a narrow one, of which the style sheet shows one; empty where there is none."""
    widths = {"wide-plot": WIDE_INCHES, "narrow-plot": NARROW_INCHES}
    drawn = {name: plot(facts, width) for name, width in widths.items()}
    return Markup("".join(f'<div class="{name}">{svg}</div>' for name, svg in drawn.items() if svg))


class GateLink:
    """A gate of the engine, in the navigation of a report's page."""

    def __init__(self, report: ParityReport, page: ParityReport, reports: Sequence[ParityReport]) -> None:
        self.title, self.passed, self.current = report.title, report.passed, report is page
        here, there = place_of(page, reports), place_of(report, reports)
        self.href = posixpath.relpath(posixpath.join(there, HTML_FILE), here)


def nearest_to_limit(report: ParityReport) -> tuple[str, Check] | None:
    """The boundary and check that use the largest share of what their limit allows, where any differs at all."""
    checks = [(boundary.name, check) for boundary in report.boundaries for check in boundary.checks]
    name, check = max(checks, key=lambda each: _used(each[1]), default=("", None))
    return (name, check) if check is not None and _used(check) > 0 else None


def _used(check: Check) -> float:
    """Share of an allowed error that was measured; of what has 1 for its best value, of the distance from that."""
    best = 0.0 if check.relation == "at most" else 1.0
    allowed = abs(check.limit - best)
    return abs(check.value - best) / allowed if allowed else 0.0


Part = tuple[str, bool]
"""A piece of a text, and whether it is marked."""


def by_channel(reasoning: ReasoningFormat | None, parts: Sequence[Part]) -> list[tuple[str, list[Part]]]:
    """A text in pieces, parted into reasoning and answer. Tags and white space around both are dropped; of a report
    that does not know the tags, all is one text."""
    text = "".join(piece for piece, _ in parts)
    if reasoning is None:
        return [("Text", list(parts))]
    start, end = reasoning.tags
    opened = text.lstrip().startswith(start)
    if not opened and not reasoning.is_opened:
        return [("Answer", _cut(parts, 0, len(text)))]
    begin = text.index(start) + len(start) if opened else 0
    stop = text.find(end, begin)
    spans = [("Reasoning", begin, stop if stop >= 0 else len(text))]
    spans += [("Answer", stop + len(end), len(text))] if stop >= 0 else []
    channels = []
    for name, first, last in spans:
        inside = text[first:last]
        first += len(inside) - len(inside.lstrip())
        channels.append((name, _cut(parts, first, max(first, first + len(inside.strip())))))
    return [(name, pieces) for name, pieces in channels if pieces]


def visible(token: str) -> str:
    """A token at which answers part, as it can be marked: white space by signs, and the end of an answer in words."""
    if not token:
        return "⟨ended⟩"
    return token if token.strip() else "".join({"\n": "⏎", "\t": "⇥"}.get(letter, "␣") for letter in token)


def _cut(parts: Sequence[Part], first: int, last: int) -> list[Part]:
    cut, at = [], 0
    for piece, marked in parts:
        inside = piece[max(0, first - at) : max(0, last - at)]
        cut += [(inside, marked)] if inside else []
        at += len(piece)
    return cut


def sensitivity_table(report: ParityReport) -> SensitivityTable | None:
    """Return the sensitivities of a calibration that measured them, otherwise None."""
    return report.calibration.sensitivity if report.calibration else None


def largest_layers(report: ParityReport) -> list[LayerRange]:
    """The layers that are nearest to the end of the engine's type, the nearest first."""
    layers = report.ranges.layers if report.ranges else ()
    return sorted(layers, key=lambda layer: -layer.magnitude)[:_SHOWN_LAYERS]


def modules(report: ParityReport) -> list[tuple[str, str | None, list[Candidate]]]:
    """Each module of the sensitivity table, the precision that was chosen for it, and what it could have had."""
    table = sensitivity_table(report)
    if table is None:
        return []
    chosen = table.selection.precisions if table.selection else {}
    by_module: dict[str, list[Candidate]] = {}
    for option in table.options:
        by_module.setdefault(option.module, []).append(option)
    return [(module, chosen.get(module), options) for module, options in by_module.items()]


def stages(report: ParityReport) -> list[Stage]:
    """The boundaries in data-flow order, ViT blocks and decoder layers taken together."""
    by_kind: dict[str, list[BoundaryResult]] = {}
    for boundary in report.boundaries:
        by_kind.setdefault(kind_of(boundary.name), []).append(boundary)
    return [
        Stage(
            name=str(Count(len(members), LAYERS[kind].removesuffix("s"))) if kind in LAYERS else kind,
            members=members,
            checks=[_worst(checks) for checks in zip(*(member.checks for member in members), strict=True)],
            first_bad=any(member.name == report.first_bad for member in members),
        )
        for kind, members in by_kind.items()
    ]


def _worst(checks: Sequence[Check]) -> Check:
    """The worst of several checks of one metric."""
    choose = max if checks[0].relation == "at most" else min
    return choose(checks, key=lambda check: check.value)


def shown_samples(samples: Sequence[SampleResult]) -> list[SampleResult]:
    """Some samples in full: those that diverge first, then those that agree."""
    with_images = [sample for sample in samples if sample.thumbnails_png] or list(samples)
    return sorted(with_images, key=lambda sample: sample.divergence is None)[:_SHOWN_SAMPLES]


def megabytes(size_bytes: int) -> str:
    """Format a size in megabytes (10**6 bytes)."""
    decimals = 3 if size_bytes < 1e6 else 1 if size_bytes < 1e9 else 0
    return f"{size_bytes / 1e6:.{decimals}f}"


def data_uri(png: bytes) -> str:
    """Encode a PNG as a data URI."""
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
