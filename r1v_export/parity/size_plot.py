"""The plot of several bundles: accuracy against size, with labels that leave each other room."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from r1v_export.parity.figures import ONE, TWO, WIDE_INCHES, figure_of, lay_out, svg_of, whole_decades, wrapped
from r1v_export.parity.metric_text import short
from r1v_export.parity.schema import BundleFacts

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.text import Annotation
    from matplotlib.transforms import Bbox

_SMALLEST_DRAWN = 1e-3
"""Of the largest divergence; what is smaller stands at the edge."""

_LONGEST_NAME = 24
"""Letters of a bundle's name in a plot; the table below has it in full."""

_SPOTS = ((5, 1), (-12, 1), (5, -1), (-12, -1), (20, 1), (-27, 1), (20, -1), (-27, -1))
"""Where the label of a point may be, if not where it was put: points above it, and on which side, 1: the same."""


def accuracy_by_size(bundles: Sequence[BundleFacts], width_inches: float = WIDE_INCHES) -> str | None:
    """Divergence, and shares of right answers where they differ, of several bundles against the size of their
    weights."""
    if len(bundles) < 2:
        return None
    from matplotlib.ticker import MaxNLocator

    scored = len({(bundle.correct, bundle.scored) for bundle in bundles}) > 1
    with figure_of(width_inches, 6.4 if scored else 3.6) as figure:
        panels = figure.subplots(2 if scored else 1, 1, sharex=True, squeeze=False)[:, 0]
        axes, kls = panels[-1], [bundle.mean_kl for bundle in bundles]
        # Rounding in float32 is a hundred million times less: drawn to scale it would leave the others on one spot.
        floor = max(max(kls), 1e-12) * _SMALLEST_DRAWN
        markers = ["s" if kl >= floor else "v" for kl in kls]
        names = _size_points(axes, bundles, [max(kl, floor) for kl in kls], TWO, markers, [short(kl) for kl in kls])
        axes.set_yscale("log")
        low, high = axes.get_ylim()
        axes.set_ylim(low / 2, high * 3)  # Room for labels.
        whole_decades(axes)
        title = "mean KL divergence from the float32 model, nats" + ("; ▼: lower than drawn" if "v" in markers else "")
        axes.set_title(wrapped(title, figure), fontsize=10.5)
        axes.set_xlabel(f"size of the weights, {_unit(bundles)[0]}")
        # So few that labels of a narrow screen have room.
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6))
        if scored:
            shares = [100 * bundle.correct / max(1, bundle.scored) for bundle in bundles]
            labels = [f"{bundle.correct} of {bundle.scored}" for bundle in bundles]
            names += _size_points(panels[0], bundles, shares, ONE, ["o"] * len(bundles), labels)
            panels[0].set_title("correct answers, %", fontsize=10.5)
            panels[0].margins(y=0.25)
            low, high = panels[0].get_ylim()
            # Room for labels, not for an axis above 100 or below 0.
            low, high = max(low, -0.15 * high), min(high, 100 + 0.15 * (100 - low))
            panels[0].set_ylim(low, high)
            ticks = [tick for tick in panels[0].get_yticks() if max(low, 0) <= tick <= min(high, 100)]
            panels[0].set_yticks(ticks, [f"{tick:g}" for tick in ticks])
            panels[0].spines.left.set_bounds(max(low, 0), min(high, 100))
            panels[0].grid(visible=False, axis="x")
        _set_apart(names)
        what = "Divergence and correct answers" if scored else "Divergence"
        return svg_of(figure, "sizes", f"{what} against size; the numbers are in the table below.")


def _size_points(
    axes: Axes,
    bundles: Sequence[BundleFacts],
    values: Sequence[float],
    color: str,
    markers: Sequence[str],
    labels: Sequence[str],
) -> list[Annotation]:
    """Draw the points. Returns the label of each."""
    sizes = [bundle.size_bytes / _unit(bundles)[1] for bundle in bundles]
    by_size = sorted(range(len(bundles)), key=lambda number: sizes[number])
    names = []
    for number, (bundle, x, y, label) in enumerate(zip(bundles, sizes, values, labels, strict=True)):
        axes.plot(x, y, marker=markers[number], markersize=8, color=color)
        text = f"{_shortened(bundle.name)}: {label}"
        # To the left of the points in the right half, so that no label leaves the figure.
        left = x > (min(sizes) + max(sizes)) / 2
        height = 5 if by_size.index(number) % 2 else -12  # Neighbors at the same height would write over each other.
        offset, endpoint = ((-9, height), "right") if left else ((9, height), "left")
        names.append(axes.annotate(text, (x, y), xytext=offset, textcoords="offset points", ha=endpoint, fontsize=10))
        names[-1].set_in_layout(False)  # The axes keep their place when it moves.
    axes.margins(x=0.12)
    axes.grid(axis="both")
    return names


def _unit(bundles: Sequence[BundleFacts]) -> tuple[str, float]:
    """The unit of sizes, and its bytes."""
    return ("GB", 1e9) if max(bundle.size_bytes for bundle in bundles) >= 1e9 else ("MB", 1e6)


def _shortened(name: str) -> str:
    """A name that a plot has room for: of a long one its beginning and its end, in which bundles differ."""
    half = _LONGEST_NAME // 2
    return name if len(name) <= _LONGEST_NAME else f"{name[: half - 1]}…{name[-half:]}"


def _set_apart(names: Sequence[Annotation]) -> None:
    """Move labels that would be written over another one or a point, or leave the figure, to where there is room."""
    figure = names[0].get_figure(root=True)
    assert figure is not None
    from matplotlib.transforms import Bbox

    lay_out(figure)
    taken = []
    for name in names:
        assert name.axes is not None
        x, y = name.axes.transData.transform(name.xy)
        taken.append(Bbox.from_extents(x - 5, y - 5, x + 5, y + 5))
    for name in names:
        spots = [name.xyann, *((side * name.xyann[0], up) for up, side in _SPOTS)]
        boxes = [_put(name, spot) for spot in spots]
        free = [
            box.x0 >= 0 and box.x1 <= figure.bbox.width and not any(box.overlaps(other) for other in taken)
            for box in boxes
        ]
        chosen = free.index(True) if True in free else 0
        taken.append(_put(name, spots[chosen]))


def _put(name: Annotation, spot: tuple[float, float]) -> Bbox:
    """Put a label somewhere next to its point. Returns what it covers, in pixels."""
    name.xyann = spot
    name.set_horizontalalignment("left" if spot[0] > 0 else "right")
    return name.get_window_extent().expanded(1.1, 1.0)  # The page's font may be wider.
