"""Plots of a parity report as SVG text to stand inside an HTML page.

The same report gives the same bytes: no date, fixed ids, matplotlib's own defaults whatever the user's are. Colors
are variables of the page's style sheet, so the plots follow its light or dark scheme; what matters is also shown by
marker, hatch and label.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter

from r1v_export.pages import sentence
from r1v_export.parity.diagnosis import LAYERS, kind_of
from r1v_export.parity.metrics import METRICS
from r1v_export.parity.schema import BoundaryResult, BundleFacts, Latency, ParityReport, StepResult
from r1v_export.quantization.mixed_precision.budget import loss_of
from r1v_export.quantization.mixed_precision.sensitivity import FLOAT, SensitivityTable

if TYPE_CHECKING:
    from matplotlib.typing import RcKeyType

# Stand-ins that matplotlib accepts as colors -> variables of the page's style sheet.
_INK, _FAINT, _ONE, _TWO, _BAD = "#010101", "#020202", "#030303", "#040404", "#050505"
_CSS = {_INK: "--ink", _FAINT: "--line", _ONE: "--series-1", _TWO: "--series-2", _BAD: "--bad"}

_STYLE: dict[RcKeyType, object] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "r1v-export",
    "font.family": "sans-serif",
    "font.size": 10.5,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _FAINT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "xtick.color": _INK,
    "ytick.color": _INK,
    "grid.color": _FAINT,
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "hatch.color": _INK,
    "hatch.linewidth": 0.6,
}

_WIDTH_INCHES = 9.2

_OWN_PLOT = frozenset({"decoder_layer"})
"""Boundaries that the plot by boundary leaves to the one by layer."""

_LETTER_WIDTH = 0.012
"""Of a value next to its point, as a share of the axis."""

_SMALLEST_DRAWN = 1e-3
"""Of the largest divergence; what is smaller stands at the edge."""


def errors_by_boundary(report: ParityReport) -> str | None:
    """Relative error at each boundary that compares numbers, in data-flow order, with its limit where it has one."""
    label = "relative error  ‖candidate − reference‖ / ‖reference‖   (left edge: no error)"
    return _by_boundary(report, "relative_error", "errors", label)


def kl_by_boundary(report: ParityReport) -> str | None:
    """Divergence of the next token where it has a limit."""
    gated = {check.metric for b in report.boundaries for check in b.checks if check.metric in ("mean_kl", "max_kl")}
    if not gated:
        return None
    metric = "mean_kl" if "mean_kl" in gated else "max_kl"
    return _by_boundary(report, metric, "kl", f"{metric.removesuffix('_kl')} KL divergence, nats   (left edge: none)")


def _by_boundary(report: ParityReport, metric: str, name: str, label: str) -> str | None:
    boundaries = [b for b in report.boundaries if metric in b.metrics and kind_of(b.name) not in _OWN_PLOT]
    values = [b.metrics[metric] for b in boundaries]
    positive = [v for v in values if 0 < v < math.inf] + [x for b in boundaries if (x := _limit(b, metric))]
    if not positive:
        return None
    if any(_limit(b, metric) for b in boundaries):
        label = label.removesuffix(")") + "; dashed: limit)"
    low, high = 10 ** math.floor(math.log10(min(positive)) - 0.5), 10 ** math.ceil(math.log10(max(positive)) + 0.5)
    with _figure(0.34 * len(boundaries) + 1.0) as figure:
        axes = figure.subplots()
        for row, boundary in enumerate(boundaries):
            _boundary_row(axes, row, boundary, metric, (low, high))
        axes.set_xscale("log")
        axes.set_xlim(low, high)
        axes.set_ylim(len(boundaries) - 0.4, -0.6)
        axes.set_yticks(range(len(boundaries)), [b.name for b in boundaries])
        axes.set_xlabel(label)
        axes.grid(axis="x")
        axes.tick_params(axis="y", length=0, pad=10)
        what = sentence(label.partition("  ")[0])
        return _svg(figure, name, f"{what} by boundary; the numbers are in the table of all metrics.")


def errors_by_layer(report: ParityReport) -> str | None:
    """Relative error behind each decoder layer, with that behind each ViT block; nothing without decoder layers."""
    by_kind = {kind: [b for b in report.boundaries if kind_of(b.name) == kind] for kind in LAYERS}
    if not by_kind["decoder_layer"]:
        return None
    drawn = {kind: [b.metrics["relative_error"] for b in found] for kind, found in by_kind.items()}
    if not any(0 < error < math.inf for errors in drawn.values() for error in errors):
        return None
    with _figure(3.4) as figure:
        axes = figure.subplots()
        styles = (("vision_block", _TWO, "s"), ("decoder_layer", _ONE, "o"))
        for kind, color, marker in styles:
            errors = [error if 0 < error < math.inf else math.nan for error in drawn[kind]]
            axes.plot(range(len(errors)), errors, marker=marker, markersize=3.5, color=color, label=LAYERS[kind])
        for kind in LAYERS:
            bad = [(layer, b) for layer, b in enumerate(by_kind[kind]) if not b.passed]
            xs, ys = [layer for layer, _ in bad], [b.metrics["relative_error"] for _, b in bad]
            axes.plot(xs, ys, linestyle="", marker="X", markersize=8, color=_BAD)
        axes.set_yscale("log")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("layer")
        axes.set_ylabel("relative error")
        axes.grid(axis="y")
        axes.legend()
        return _svg(figure, "layers", "Relative error by layer; the numbers are in the table of all metrics.")


def _boundary_row(axes: Axes, row: int, boundary: BoundaryResult, metric: str, limits: tuple[float, float]) -> None:
    measured, limit, (low, high) = boundary.metrics[metric], _limit(boundary, metric), limits
    at = min(max(measured, low), high)
    color = _ONE if boundary.passed else _BAD
    axes.plot([low, at], [row, row], color=color, linewidth=2, solid_capstyle="butt")
    axes.plot(at, row, marker="o" if boundary.passed else "X", markersize=7, color=color, clip_on=False, zorder=3)
    failed = [check.metric for check in boundary.checks if not check.passed]
    verdict = "" if boundary.passed else "  out of tolerance"
    if failed and metric not in failed:
        verdict += f" in {METRICS[failed[0]]}"
    text = ("exact" if measured == 0 else short(measured)) + verdict
    if limit:
        axes.plot([limit, limit], [row - 0.32, row + 0.32], color=_INK, linewidth=1.6, linestyle=(0, (2, 1)))
        width = _LETTER_WIDTH * (len(text) + 2) * math.log10(high / low)
        if 0 <= math.log10(limit / at) < width:
            at = limit  # The text would cross its line.
    axes.annotate(text, (at, row), xytext=(8, 0), textcoords="offset points", va="center", fontsize=10)


def _limit(boundary: BoundaryResult, metric: str) -> float | None:
    return next((check.limit for check in boundary.checks if check.metric == metric), None)


def errors_by_step(report: ParityReport) -> str | None:
    """Largest logit error and mean KL at each decode step; nothing where there are no errors to plot."""
    steps = report.decode_steps
    if len(steps) < 2 or not any(0 < step.max_abs_error < math.inf for step in steps):
        return None
    with _figure(4.4) as figure:
        above, below = figure.subplots(2, 1, sharex=True)
        _step_line(above, steps, [step.max_abs_error for step in steps], _ONE, "o")
        _step_line(below, steps, [step.mean_kl for step in steps], _TWO, "s")
        below.set_xlabel("decode step")
        decode = report.boundary("decode")
        titles = {above: "largest error of a logit", below: "mean KL divergence of the next token, nats"}
        for axes, metric in ((above, "max_abs_error"), (below, "max_kl"), (below, "mean_kl")):
            if limit := _limit(decode, metric):
                _draw_limit(axes, limit)
                # In the title, where no line crosses it.
                titles[axes] += "; dashed: limit" + (" of the mean over all steps" if metric == "mean_kl" else "")
        for axes, title in titles.items():
            axes.set_title(title, fontsize=10.5)
        return _svg(figure, "steps", "Logit error and KL divergence by decode step; the numbers are in parity.json.")


def _draw_limit(axes: Axes, limit: float) -> None:
    low, high = axes.get_ylim()
    axes.set_ylim(low, max(high, 10 * limit))
    axes.axhline(limit, color=_INK, linewidth=1.4, linestyle=(0, (4, 2)))


def _step_line(axes: Axes, steps: Sequence[StepResult], values: Sequence[float], color: str, marker: str) -> None:
    finite = [value if 0 < value < math.inf else math.nan for value in values]
    axes.plot([step.step for step in steps], finite, marker=marker, markersize=3.5, linewidth=1.3, color=color)
    axes.grid(axis="y")
    if any(value > 0 for value in finite):
        axes.set_yscale("log")
        # Whole decades: within one, matplotlib would label every minor tick.
        low, high = axes.get_ylim()
        axes.set_ylim(10 ** math.floor(math.log10(low)), 10 ** math.ceil(math.log10(high)))
        axes.yaxis.set_minor_formatter(NullFormatter())


def latency_by_stage(report: ParityReport) -> str | None:
    """Mean time of each stage, both engines."""
    if not report.latency:
        return None
    with _figure(0.72 * len(report.latency) + 0.6) as figure:
        panels = figure.subplots(len(report.latency), 1, squeeze=False)[:, 0]
        for axes, latency in zip(panels, report.latency, strict=True):
            _latency_bars(axes, 0, latency)
            axes.set_yticks([0], [f"{latency.stage}, ms per {latency.unit}"])
            axes.set_ylim(0.5, -0.5)
            axes.set_xlim(0, 1.35 * max(latency.reference_ms, latency.candidate_ms) or 1)
            axes.set_xticks([])
            axes.tick_params(axis="y", length=0)
            axes.spines["bottom"].set_visible(False)
        panels[-1].set_xlabel(f"Plain: {engine_name(report.reference)}. Hatched: {report.candidate}.")
        return _svg(figure, "latency", "Latency by stage; the numbers are in parity.json.")


def _latency_bars(axes: Axes, row: int, latency: Latency) -> None:
    bars = ((latency.reference_ms, -0.19, _ONE, None), (latency.candidate_ms, 0.19, _TWO, "////"))
    for milliseconds, offset, color, hatch in bars:
        axes.barh(row + offset, milliseconds, height=0.34, color=color, hatch=hatch, edgecolor=_INK, linewidth=0.5)
        text = short(milliseconds)
        if hatch and milliseconds:
            text += f"   ({latency.reference_ms / milliseconds:.2g} x as fast)"
        at = (milliseconds, row + offset)
        axes.annotate(text, at, xytext=(5, 0), textcoords="offset points", va="center", fontsize=10)


def sensitivity(table: SensitivityTable) -> str | None:
    """What quantizing each module alone costs, in model order; filled where that precision was chosen."""
    chosen = table.selection.precisions if table.selection else {}
    modules = list(dict.fromkeys(option.module for option in table.options))
    precisions = [name for name in dict.fromkeys(option.precision for option in table.options) if name != FLOAT]
    losses = [loss_of(option) for option in table.options if loss_of(option) > 0]
    if not losses:
        return None
    measure = "mean KL divergence of the next token, nats" if _has_kl(table) else "noise to signal"
    with _figure(4.6) as figure:
        axes = figure.subplots()
        for precision, color, marker in zip(precisions, (_ONE, _TWO), "os", strict=False):
            options = {option.module: option for option in table.options if option.precision == precision}
            points = [(x, max(loss_of(options[m]), min(losses))) for x, m in enumerate(modules) if m in options]
            taken = [point for point in points if chosen.get(modules[point[0]]) == precision]
            style: dict[str, Any] = {"marker": marker, "color": color, "markersize": 5}
            axes.plot(*zip(*points, strict=True), linewidth=0.7, fillstyle="none", **style)
            label = f"{precision}, chosen for {len(taken)} of {len(modules)}"
            axes.plot([x for x, _ in taken], [y for _, y in taken], linestyle="none", label=label, **style)
        _mark_towers(axes, modules)
        axes.set_yscale("log")
        axes.set_xlabel("module, in the order of the data flow; filled where this precision was chosen")
        axes.set_title(measure, fontsize=10.5)
        axes.grid(axis="y")
        figure.legend(loc="outside lower center", ncols=len(precisions))
        return _svg(figure, "sensitivity", "Cost of quantizing each module alone; the numbers are in the table below.")


def _mark_towers(axes: Axes, modules: Sequence[str]) -> None:
    towers = [module.split(".", 1)[0] for module in modules]
    names = {"vision_model": "vision tower", "mlp1": "projector", "language_model": "language model"}
    starts = [x for x, tower in enumerate(towers) if x == 0 or towers[x - 1] != tower]
    for start in starts:
        if start:
            axes.axvline(start - 0.5, color=_FAINT, linewidth=1)
    # Every other one a line lower: the projector is narrower than its name.
    labels = ["\n" * (i % 2) + names.get(towers[start], towers[start]) for i, start in enumerate(starts)]
    axes.set_xticks(starts, labels, ha="left")
    axes.tick_params(axis="x", length=0)
    axes.set_xlim(-1, len(modules))


def _has_kl(table: SensitivityTable) -> bool:
    return any(option.kl is not None for option in table.options)


def accuracy_by_size(bundles: Sequence[BundleFacts]) -> str | None:
    """Divergence, and right answers where they are known, of several bundles against the size of their weights."""
    if len(bundles) < 2:
        return None
    scored = any(bundle.scored for bundle in bundles)
    with _figure(6.4 if scored else 3.6) as figure:
        panels = figure.subplots(2 if scored else 1, 1, sharex=True, squeeze=False)[:, 0]
        kls = [bundle.mean_kl for bundle in bundles]
        # Rounding in float32 is a hundred million times less: drawn to scale it would leave the others on one spot.
        floor = max(max(kls), 1e-12) * _SMALLEST_DRAWN
        _size_points(panels[-1], bundles, [max(kl, floor) for kl in kls], _TWO, "s", [short(kl) for kl in kls])
        panels[-1].set_yscale("log")
        panels[-1].yaxis.set_minor_formatter(NullFormatter())
        low, high = panels[-1].get_ylim()
        panels[-1].set_ylim(low / 2, high * 3)
        panels[-1].set_title("mean KL divergence from the float32 model, nats; lower edge: less", fontsize=10.5)
        panels[-1].set_xlabel("size of the weights, MB")
        if scored:
            shares = [100 * bundle.correct / max(1, bundle.scored) for bundle in bundles]
            labels = [f"{bundle.correct} of {bundle.scored}" for bundle in bundles]
            _size_points(panels[0], bundles, shares, _ONE, "o", labels)
            panels[0].set_title("right answers, %", fontsize=10.5)
            panels[0].margins(y=0.25)
            low, high = panels[0].get_ylim()
            panels[0].set_yticks([tick for tick in panels[0].get_yticks() if low <= tick <= min(high, 100)])
        return _svg(figure, "sizes", "Divergence and right answers against size; the numbers are in the table below.")


def _size_points(
    axes: Axes, bundles: Sequence[BundleFacts], values: Sequence[float], color: str, marker: str, labels: Sequence[str]
) -> None:
    megabytes = [bundle.size_bytes / 1e6 for bundle in bundles]
    axes.plot(megabytes, values, marker=marker, linestyle="none", markersize=8, color=color)
    for number, (bundle, x, y, label) in enumerate(zip(bundles, megabytes, values, labels, strict=True)):
        text = f"{bundle.name}: {label}"
        # To the left of the points in the right half, so that no label leaves the figure.
        left = x > (min(megabytes) + max(megabytes)) / 2
        height = 5 if number % 2 else -12
        offset, endpoint = ((-9, height), "right") if left else ((9, height), "left")
        axes.annotate(text, (x, y), xytext=offset, textcoords="offset points", ha=endpoint, fontsize=10)
    axes.margins(x=0.12)
    axes.grid(axis="both")


def engine_name(name: str) -> str:
    """An engine's name as people write it."""
    return "PyTorch" if name == "pytorch" else name


def short(value: float) -> str:
    """A number in three significant digits."""
    return "∞" if value == math.inf else "−∞" if value == -math.inf else f"{value:.3g}"


@contextmanager
def _figure(height_inches: float) -> Iterator[Figure]:
    """A figure under the page's style, apart from any pyplot state."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        figure = Figure(figsize=(_WIDTH_INCHES, height_inches), layout="constrained")
        figure.patch.set_visible(False)
        yield figure


def _svg(figure: Figure, name: str, description: str) -> str:
    """The figure as an <svg> element; `name` keeps its ids apart from those of other figures on the page."""
    for axes in figure.axes:
        axes.patch.set_visible(False)
    file = io.StringIO()
    FigureCanvasSVG(figure).print_svg(file, metadata={"Date": None, "Creator": None})
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'(href="#|url\(#)', rf"\g<1>{name}-", svg)
    svg = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", svg)
    for color, variable in _CSS.items():
        svg = svg.replace(color, f"var({variable})")
    return svg.replace("<svg ", f'<svg role="img" aria-label="{description}" ', 1)
