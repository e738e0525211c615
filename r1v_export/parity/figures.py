"""Figures of a parity report: their style, their two widths, and how they become SVG text to stand inside an HTML page.

The same figure gives the same bytes: no date, fixed ids, matplotlib's own defaults whatever the user's are. Colors are
variables of the page's style sheet, so the plots follow its light or dark scheme.
"""

from __future__ import annotations

import io
import math
import re
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    # What draws imports it: it takes half a second, and most commands draw nothing.
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure
    from matplotlib.typing import RcKeyType

# Stand-ins that matplotlib accepts as colors -> variables of the page's style sheet.
INK, FAINT, ONE, TWO, BAD = "#010101", "#020202", "#030303", "#040404", "#050505"
_CSS = {INK: "--ink", FAINT: "--line", ONE: "--series-1", TWO: "--series-2", BAD: "--bad"}

_STYLE: dict[RcKeyType, object] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "r1v-export",
    "font.family": "sans-serif",
    "font.size": 10.5,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": FAINT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": FAINT,
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "hatch.color": INK,
    "hatch.linewidth": 0.6,
}

WIDE_INCHES, NARROW_INCHES = 9.2, 5.0
"""Of a plot. The page scales the wide one to 800 pixels and more, the narrow one to what a phone has."""

_LETTER_INCHES = 0.074
"""Mean width of a letter of labels and titles."""


@contextmanager
def figure_of(width_inches: float, height_inches: float) -> Iterator[Figure]:
    """A figure under the page's style, apart from any pyplot state."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        figure = Figure(figsize=(width_inches, height_inches), layout="constrained")
        figure.patch.set_visible(False)
        yield figure


def wrapped(text: str, figure: Figure) -> str:
    """A label or title in lines that the figure has room for, next to the labels of its axis; where it can be, a line
    ends before brackets or behind a semicolon."""
    letters = math.floor((figure.get_figwidth() - 0.9) / _LETTER_INCHES)
    parts = [text]
    for end in (r" {2,}(?=\()", r"(?<=;) "):
        parts = [piece for part in parts for piece in ([part] if len(part) <= letters else re.split(end, part))]
    return "\n".join(line for part in parts for line in textwrap.wrap(part, letters))


_POWER = re.compile(r"\$\\mathdefault\{(?:(-?\d+)\\times)?10\^\{(-?\d+)\}\}\$")
_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def whole_decades(axes: Axes) -> None:
    """Make the vertical axis logarithmic, of the whole decades around what is drawn. These alone have labels: within
    one decade matplotlib would label every minor tick, such as 2×10⁻²."""
    axes.set_yscale("log")
    axes.set_ylim(decades(*axes.get_ylim()))
    write_powers(axes.yaxis)


def decades(low: float, high: float) -> tuple[float, float]:
    """The whole decades around two positive numbers, as floats: an integer of 1e20 is more than numpy's hold."""
    return 10.0 ** math.floor(math.log10(low)), 10.0 ** math.ceil(math.log10(high))


def write_powers(axis: Axis) -> None:
    """Label the decades of a logarithmic axis in plain text: matplotlib's own labels are TeX, and to parse it takes
    half of the time of a page."""
    from matplotlib.ticker import LogFormatterSciNotation, NullFormatter

    class Powers(LogFormatterSciNotation):
        def __call__(self, value: float, pos: int | None = None) -> str:
            label = str(super().__call__(value, pos))
            if found := _POWER.fullmatch(label):
                factor, power = found.groups()
                return (f"{factor}×" if factor else "") + "10" + power.translate(_RAISED)
            return label

    axis.set_major_formatter(Powers())
    axis.set_minor_formatter(NullFormatter())


def lay_out(figure: Figure) -> None:
    """Place everything without drawing it, so that texts know their extents."""
    engine = figure.get_layout_engine()
    assert engine is not None, "figure_of gives it one"
    engine.execute(figure)


def svg_of(figure: Figure, name: str, description: str) -> str:
    """The figure as an <svg> element; `name` keeps its ids apart from those of other figures on the page, and of the
    same one at another width."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    name += "-narrow" if figure.get_figwidth() < WIDE_INCHES else ""
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


def is_narrow(axes: Axes) -> bool:
    """Whether the figure is the one for a narrow screen."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    return figure.get_figwidth() < WIDE_INCHES
