"""Accuracy against size: no label over another one, at either width."""

from __future__ import annotations

import re
from itertools import combinations

import pytest

from r1v_export.config import Precision
from r1v_export.parity.figures import NARROW_INCHES, WIDE_INCHES
from r1v_export.parity.schema import BundleFacts
from r1v_export.parity.size_plot import accuracy_by_size
from tests.browser import needs_chromium, opened, show

FACTS: tuple[tuple[Precision, float, float, int], ...] = (
    ("fp8", 38e9, 0.62, 1),
    ("int4", 20e9, 0.011, 30),
    ("int8", 39e9, 0.00012, 31),
    ("fp32", 152e9, 1e-13, 31),
)


def bundles(name: str) -> list[BundleFacts]:
    """One that lost nearly everything, and three of nearly the same accuracy, two of these of nearly one size."""
    return [
        BundleFacts(
            name=f"{name}-{precision}",
            precision=precision,
            target="onnxruntime",
            size_bytes=int(size),
            mean_kl=kl,
            top1_agreement=0.9,
            correct=correct,
            scored=32,
        )
        for precision, size, kl, correct in FACTS
    ]


@needs_chromium
@pytest.mark.parametrize("name", ["out", "skywork-r1v3-38b", "a-name-of-a-bundle-that-is-wider-than-its-plot"])
@pytest.mark.parametrize(("inches", "pixels"), [(WIDE_INCHES, 1080), (NARROW_INCHES, 440)])
def test_labels_neither_cover_each_other_nor_leave_the_figure(name: str, inches: float, pixels: int):
    svg = accuracy_by_size(bundles(name), inches)
    assert svg is not None
    with opened(1280, "light") as page:
        show(page, f'<div style="width: {pixels}px">{svg}</div>'.replace("<svg ", '<svg style="width: 100%" ', 1))
        figure = page.locator("svg").bounding_box()
        found = [text.bounding_box() for text in page.locator("svg text").all() if ": " in text.text_content()]
        labels = [box for box in found if box is not None and box["height"] < 40]
    assert figure is not None
    assert len([box for box in labels if box["width"] > 20]) >= 8
    for box in labels:
        assert figure["x"] <= box["x"]
        assert box["x"] + box["width"] <= figure["x"] + figure["width"]
    for one, other in combinations(labels, 2):
        apart = (
            one["x"] + one["width"] <= other["x"]
            or other["x"] + other["width"] <= one["x"]
            or one["y"] + 0.8 * one["height"] <= other["y"]
            or other["y"] + 0.8 * other["height"] <= one["y"]
        )
        assert apart, (one, other)


def test_no_share_of_answers_below_none_is_on_the_axis():
    svg = accuracy_by_size(bundles("out"))
    assert svg is not None
    shares = svg.partition('id="sizes-axes_1"')[2].partition('id="sizes-axes_2"')[0]
    ticks = [float(text.replace("−", "-")) for text in re.findall(r">([-−]?\d+)</text>", shares)]
    assert 0 in ticks
    assert min(ticks) == 0


def test_large_sizes_are_in_gigabytes_and_leave_each_other_room_on_a_narrow_screen():
    svg = accuracy_by_size(bundles("out"), NARROW_INCHES)
    assert svg is not None
    assert ">size of the weights, GB<" in svg
    axis = svg.partition('id="sizes-narrow-matplotlib.axis_3"')[2].partition("matplotlib.axis_4")[0]
    ticks = re.findall(r">(\d+)</text>", axis)
    assert ticks
    assert len("".join(ticks)) <= 20
    small = [bundle.model_copy(update={"size_bytes": bundle.size_bytes // 1000}) for bundle in bundles("out")]
    assert ">size of the weights, MB<" in (accuracy_by_size(small) or "")


def test_a_long_name_is_cut_visibly_and_not_where_it_differs_from_others():
    svg = accuracy_by_size(bundles("a-name-of-a-bundle-that-is-wider-than-its-plot"))
    assert svg is not None
    assert ">a-name-of-a…its-plot-fp8: 1 of 32<" in svg
