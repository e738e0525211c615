"""Plots of a parity report as SVG text to stand inside an HTML page, each for a wide and for a narrow screen.

What matters is shown by marker, hatch and label, and not by color alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from r1v_export.pages import sentence
from r1v_export.parity.diagnosis import LAYERS, kind_of
from r1v_export.parity.figures import (
    BAD,
    FAINT,
    INK,
    ONE,
    TWO,
    WIDE_INCHES,
    decades,
    figure_of,
    is_narrow,
    lay_out,
    svg_of,
    whole_decades,
    wrapped,
    write_powers,
)
from r1v_export.parity.metric_text import metric_text, short
from r1v_export.parity.metrics import METRICS
from r1v_export.parity.schema import BoundaryResult, Latency, ParityReport, StepResult
from r1v_export.quantization.mixed_precision.budget import loss_of
from r1v_export.quantization.mixed_precision.sensitivity import FLOAT, SensitivityTable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.text import Annotation

_MOST_ROWS = 8
"""ViT blocks in the plot by boundary; more, and decoder layers of any number, are left to the plot by layer."""

_LARGEST_DRAWN = 1e3
"""Of relative errors and divergences by boundary; what is larger, or infinite, stands at the edge."""


def errors_by_boundary(report: ParityReport, width_inches: float = WIDE_INCHES) -> str | None:
    """Relative error at each boundary that compares numbers, in data-flow order, with its limit where it has one."""
    label = "relative error  ‖candidate − reference‖ / ‖reference‖   (left edge: no error)"
    return _by_boundary(report, "relative_error", "errors", label, width_inches)


def kl_by_boundary(report: ParityReport, width_inches: float = WIDE_INCHES) -> str | None:
    """Divergence of the next token where it has a limit."""
    gated = {check.metric for b in report.boundaries for check in b.checks if check.metric in ("mean_kl", "max_kl")}
    if not gated:
        return None
    metric = "mean_kl" if "mean_kl" in gated else "max_kl"
    label = f"{metric.removesuffix('_kl')} KL divergence, nats   (left edge: none)"
    return _by_boundary(report, metric, "kl", label, width_inches)


def _by_boundary(report: ParityReport, metric: str, name: str, label: str, width_inches: float) -> str | None:
    by_layer = _layers_apart(report)
    boundaries = [b for b in report.boundaries if metric in b.metrics and kind_of(b.name) not in by_layer]
    values = [b.metrics[metric] for b in boundaries]
    positive = [v for v in values if 0 < v < math.inf] + [x for b in boundaries if (x := _limit(b, metric))]
    if not positive:
        return None
    limits = [limit for b in boundaries if (limit := _limit(b, metric))]
    # The scale of a broken engine's 1e20 would leave no room for what passed.
    most = max([_LARGEST_DRAWN, *limits])
    low, high = decades(min(min(positive) / 3, most / 1e3), min(3 * max(positive), most))
    low = min(low, high / 1e3)  # One decade of what is all exact or alike would be no scale.
    edges = "; dashed: limit" * bool(limits) + "; right edge: more" * any(v > high for v in values)
    label = label.removesuffix(")") + edges + ")"
    # A failed row may have a text in two lines.
    row_inches = 0.34 if width_inches == WIDE_INCHES or all(b.passed for b in boundaries) else 0.42
    with figure_of(width_inches, row_inches * len(boundaries) + 1.0) as figure:
        axes = figure.subplots()
        texts = [_boundary_row(axes, row, boundary, metric, (low, high)) for row, boundary in enumerate(boundaries)]
        axes.set_xscale("log")
        write_powers(axes.xaxis)
        axes.set_xlim(low, high)
        axes.set_ylim(len(boundaries) - 0.4, -0.6)
        axes.set_yticks(range(len(boundaries)), [b.name for b in boundaries])
        axes.set_xlabel(wrapped(label, figure), loc="left")
        axes.grid(axis="x")
        axes.tick_params(axis="y", length=0, pad=10)
        lay_out(figure)
        for boundary, text in zip(boundaries, texts, strict=True):
            if limit := _limit(boundary, metric):
                _keep_clear(text, limit, low, boundary.passed)
        what = sentence(label.partition("  ")[0])
        return svg_of(figure, name, f"{what} by boundary; the numbers are in the table of all metrics.")


def errors_by_layer(report: ParityReport, width_inches: float = WIDE_INCHES) -> str | None:
    """Relative error behind each decoder layer and ViT block, with their limits; nothing without decoder layers and
    with so few ViT blocks that the plot by boundary has them."""
    if not _layers_apart(report):
        return None
    by_kind = {kind: [b for b in report.boundaries if kind_of(b.name) == kind] for kind in LAYERS}
    drawn = {kind: [b.metrics["relative_error"] for b in found] for kind, found in by_kind.items()}
    if not any(0 < error < math.inf for errors in drawn.values() for error in errors):
        return None
    from matplotlib.ticker import MaxNLocator

    with figure_of(width_inches, 3.4) as figure:
        axes = figure.subplots()
        styles = (("vision_block", TWO, "s"), ("decoder_layer", ONE, "o"))
        for kind, color, marker in styles:
            errors = [error if 0 < error < math.inf else math.nan for error in drawn[kind]]
            if errors:
                axes.plot(range(len(errors)), errors, marker=marker, markersize=3.5, color=color, label=LAYERS[kind])
            if limit := next((_limit(b, "relative_error") for b in by_kind[kind]), None):
                name = f"limit of {LAYERS[kind]}"
                axes.axhline(limit, label=name, color=color, linewidth=1.4, linestyle=(0, (4, 2)))
        for kind in LAYERS:
            bad = [(layer, b) for layer, b in enumerate(by_kind[kind]) if not b.passed]
            xs, ys = [layer for layer, _ in bad], [b.metrics["relative_error"] for _, b in bad]
            axes.plot(xs, ys, linestyle="", marker="X", markersize=8, color=BAD)
        whole_decades(axes)
        axes.xaxis.set_major_locator(MaxNLocator(steps=[1, 2, 5, 10], integer=True))
        axes.set_xlabel("layer")
        axes.set_ylabel("relative error")
        axes.grid(axis="y")
        figure.legend(loc="outside lower center", ncols=2 if is_narrow(axes) else 4)
        return svg_of(figure, "layers", "Relative error by layer; the numbers are in the table of all metrics.")


def _layers_apart(report: ParityReport) -> frozenset[str]:
    """Kinds of boundaries that have the plot by layer, and no rows in that by boundary."""
    kinds: list[str] = [kind_of(boundary.name) for boundary in report.boundaries]
    return frozenset(kind for kind in LAYERS if kinds.count(kind) > _MOST_ROWS * (kind == "vision_block"))


def _boundary_row(axes: Axes, row: int, boundary: BoundaryResult, metric: str, ends: tuple[float, float]) -> Annotation:
    """Draw a boundary's error, and its limit. Returns the text of the error, behind the error's end."""
    measured, limit, (low, high) = boundary.metrics[metric], _limit(boundary, metric), ends
    at = min(max(measured, low), high)
    color = ONE if boundary.passed else BAD
    axes.plot([low, at], [row, row], color=color, linewidth=2, solid_capstyle="butt")
    axes.plot(at, row, marker="o" if boundary.passed else "X", markersize=7, color=color, clip_on=False, zorder=3)
    if limit:
        axes.plot([limit, limit], [row - 0.32, row + 0.32], color=INK, linewidth=1.6, linestyle=(0, (2, 1)))
    failed = [check.metric for check in boundary.checks if not check.passed]
    verdict = "" if boundary.passed else "; out of tolerance"
    if failed and metric not in failed:
        verdict += ("\n" if is_narrow(axes) else " ") + f"in {METRICS[failed[0]]}"
    text = ("exact" if measured == 0 else measured_text(boundary, metric)) + verdict
    return axes.annotate(text, (at, row), xytext=(8, 0), textcoords="offset points", va="center", fontsize=10)


def _keep_clear(text: Annotation, limit: float, low: float, passed: bool) -> None:
    """Move an error's text away from its limit's line, after the layout of the figure.

    Args:
        limit: of the error.
        low: left end of the axis.
        passed: whether the boundary did.
    """
    (at, row), box = text.xy, text.get_window_extent()
    assert text.axes is not None
    start, limit_x, point = (text.axes.transData.transform((x, row))[0] for x in (low, limit, at))
    width = 1.1 * box.width + box.x0 - point  # The page's font may be wider than the one that was measured.
    if not point <= limit_x < point + width:
        return
    if passed and limit_x - start > width:
        # It would cross the limit's line, and behind that line it would read as the limit: above its own line.
        is_long = point - start > width
        text.xy, text.xyann = (at if is_long else low, row), (-6, 2) if is_long else (2, 4)
        text.set(va="bottom", ha="right" if is_long else "left")
    else:
        text.xy = (limit, row)


def measured_text(boundary: BoundaryResult, metric: str) -> str:
    """What a boundary's metric is, in the digits that its limit asks for."""
    return metric_text(boundary.metrics[metric], metric, _limit(boundary, metric))


def _limit(boundary: BoundaryResult, metric: str) -> float | None:
    return next((check.limit for check in boundary.checks if check.metric == metric), None)


def errors_by_step(report: ParityReport, width_inches: float = WIDE_INCHES) -> str | None:
    """Largest logit error and mean KL at each decode step; nothing where there are no errors to plot."""
    steps = report.decode_steps
    if len(steps) < 2 or not any(0 < step.max_abs_error < math.inf for step in steps):
        return None
    from matplotlib.ticker import MaxNLocator

    with figure_of(width_inches, 4.4) as figure:
        above, below = figure.subplots(2, 1, sharex=True)
        _step_line(above, steps, [step.max_abs_error for step in steps], ONE, "o")
        _step_line(below, steps, [step.mean_kl for step in steps], TWO, "s")
        below.set_xlabel("decode step")
        first, last = steps[0].step, steps[-1].step
        ticks = MaxNLocator(steps=[1, 2, 5, 10], integer=True).tick_values(first, last)
        below.set_xticks([tick for tick in ticks if first <= tick <= last])
        decode = report.boundary("decode")
        titles = {above: "largest error of a logit", below: "mean KL divergence of the next token, nats"}
        for axes, metric in ((above, "max_abs_error"), (below, "max_kl"), (below, "mean_kl")):
            if limit := _limit(decode, metric):
                _draw_limit(axes, limit)
                # In the title, where no line crosses it.
                titles[axes] += "; dashed: limit" + (_LIMITED.get(metric, ""))
        for axes, title in titles.items():
            axes.set_title(wrapped(title, figure), fontsize=10.5)
        return svg_of(figure, "steps", "Logit error and KL divergence by decode step; the numbers are in parity.json.")


_LIMITED = {"mean_kl": " of the mean over all steps", "max_kl": " of the largest at any step"}
"""Metric -> what its limit is of."""


def _draw_limit(axes: Axes, limit: float) -> None:
    low, high = axes.get_ylim()
    axes.set_ylim(min(low, limit / 10) if axes.get_yscale() == "log" else low, max(high, 10 * limit))
    axes.axhline(limit, color=INK, linewidth=1.4, linestyle=(0, (4, 2)))


def _step_line(axes: Axes, steps: Sequence[StepResult], values: Sequence[float], color: str, marker: str) -> None:
    finite = [value if 0 < value < math.inf else math.nan for value in values]
    axes.plot([step.step for step in steps], finite, marker=marker, markersize=3.5, linewidth=1.3, color=color)
    axes.grid(axis="y")
    if any(value > 0 for value in finite):
        whole_decades(axes)


def latency_by_stage(report: ParityReport, width_inches: float = WIDE_INCHES) -> str | None:
    """Mean time of each stage, both engines."""
    if not report.latency:
        return None
    with figure_of(width_inches, 0.72 * len(report.latency) + 0.6) as figure:
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
        return svg_of(figure, "latency", "Latency by stage; the numbers are in parity.json.")


def _latency_bars(axes: Axes, row: int, latency: Latency) -> None:
    bars = ((latency.reference_ms, -0.19, ONE, None), (latency.candidate_ms, 0.19, TWO, "////"))
    for milliseconds, offset, color, hatch in bars:
        axes.barh(row + offset, milliseconds, height=0.34, color=color, hatch=hatch, edgecolor=INK, linewidth=0.5)
        text = short(milliseconds)
        if hatch and milliseconds:
            text += f"   ({short(latency.reference_ms / milliseconds, 2)} x as fast)"
        at = (milliseconds, row + offset)
        axes.annotate(text, at, xytext=(5, 0), textcoords="offset points", va="center", fontsize=10)


def sensitivity(table: SensitivityTable, width_inches: float = WIDE_INCHES) -> str | None:
    """What quantizing each module alone costs, in model order; filled where that precision was chosen."""
    chosen = table.selection.precisions if table.selection else {}
    modules = list(dict.fromkeys(option.module for option in table.options))
    precisions = [name for name in dict.fromkeys(option.precision for option in table.options) if name != FLOAT]
    losses = [loss_of(option) for option in table.options if loss_of(option) > 0]
    if not losses:
        return None
    measure = "mean KL divergence of the next token, nats" if _has_kl(table) else "noise to signal"
    with figure_of(width_inches, 4.6) as figure:
        axes = figure.subplots()
        for precision, color, marker in zip(precisions, (ONE, TWO), "os", strict=False):
            options = {option.module: option for option in table.options if option.precision == precision}
            points = [(x, max(loss_of(options[m]), min(losses))) for x, m in enumerate(modules) if m in options]
            taken = [point for point in points if chosen.get(modules[point[0]]) == precision]
            style: dict[str, Any] = {"marker": marker, "color": color, "markersize": 5}
            axes.plot(*zip(*points, strict=True), linewidth=0.7, fillstyle="none", **style)
            label = f"{precision}, chosen for {len(taken)} of {len(modules)}"
            axes.plot([x for x, _ in taken], [y for _, y in taken], linestyle="none", label=label, **style)
        _mark_towers(axes, modules)
        whole_decades(axes)
        axes.set_xlabel(
            wrapped("module, in the order of the data flow; filled where this precision was chosen", figure)
        )
        axes.set_title(measure, fontsize=10.5)
        axes.grid(axis="y")
        figure.legend(loc="outside lower center", ncols=len(precisions))
        return svg_of(
            figure, "sensitivity", "Cost of quantizing each module alone; the numbers are in the table below."
        )


def _mark_towers(axes: Axes, modules: Sequence[str]) -> None:
    towers = [module.split(".", 1)[0] for module in modules]
    names = {"vision_model": "vision tower", "mlp1": "projector", "language_model": "language model"}
    starts = [x for x, tower in enumerate(towers) if x == 0 or towers[x - 1] != tower]
    for start in starts:
        if start:
            axes.axvline(start - 0.5, color=FAINT, linewidth=1)
    # Every other one a line lower: the projector is narrower than its name.
    labels = ["\n" * (i % 2) + names.get(towers[start], towers[start]) for i, start in enumerate(starts)]
    axes.set_xticks(starts, labels, ha="left")
    axes.tick_params(axis="x", length=0)
    axes.set_xlim(-1, len(modules))


def _has_kl(table: SensitivityTable) -> bool:
    return any(option.kl is not None for option in table.options)


def engine_name(name: str) -> str:
    """An engine's name as people write it."""
    return "PyTorch" if name == "pytorch" else name
