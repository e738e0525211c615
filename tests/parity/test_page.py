"""The page of a parity report in a browser: readable in light and dark, wide and narrow."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from r1v_export.parity import CheckOptions, Endpoint, ParitySample, check
from r1v_export.parity.report import to_html
from r1v_export.parity.schema import ReasoningFormat, Saturation
from r1v_export.reference.model import Model
from tests.browser import VIEWS, faint_texts, needs_chromium, opened, scrolling_tables, show, unreachable_scrollers

pytestmark = needs_chromium


def damage_a_block(model: Model) -> None:
    model.vision_model.encoder.layers[1].mlp.fc1.weight *= 4


@pytest.fixture(scope="module")
def html(
    reference: Endpoint, damaged: Callable[[Callable[[Model], None]], Endpoint], samples: list[ParitySample]
) -> str:
    """A page with every plot, answers that differ and are all reasoning, and a clipped input."""
    options = CheckOptions("fp32", max_new_tokens=40, batch_size=2, measure_latency=True)
    report = check(reference, damaged(damage_a_block), samples, options)
    clipped = Saturation(linear="language_model.model.layers.0.mlp.down_proj", ratio=1.0004)
    thinking = ReasoningFormat(tags=("<think>", "</think>"), is_opened=True)
    many = [report.samples[i % len(samples)].model_copy(update={"name": f"above-below {i}"}) for i in range(14)]
    update = {"reasoning": thinking, "saturations": (clipped,), "samples": many}
    return to_html(report.model_copy(update=update))


@pytest.mark.parametrize(("width", "theme"), VIEWS)
def test_every_text_stands_out_and_nothing_is_cut(html, width, theme):
    with opened(width, theme) as page:
        show(page, html)
        assert page.locator("mark").count() > 0
        assert faint_texts(page) == []
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert unreachable_scrollers(page) == []
        assert set(scrolling_tables(page)) <= {"All metrics"}


def test_letters_of_plots_are_no_smaller_than_12_pixels_on_a_narrow_screen(html):
    with opened(500, "light") as page:
        show(page, html)
        sizes = page.evaluate(
            """() => [...document.querySelectorAll("svg text")].filter((text) => !text.closest("[id*=mathtext]")
              && !text.querySelector("tspan")).map((text) => parseFloat(getComputedStyle(text).fontSize)
              * text.closest("svg").getBoundingClientRect().width / text.closest("svg").viewBox.baseVal.width)"""
        )
        assert min(sizes) >= 12


def test_names_of_boundaries_stay_in_view_while_the_table_of_all_metrics_scrolls(html):
    with opened(500, "light") as page:
        show(page, html)
        region = page.get_by_role("region", name="All metrics")
        name = region.get_by_role("rowheader", name="prefill")
        before = name.bounding_box()
        region.evaluate("(element) => (element.scrollLeft = 300)")
        assert region.evaluate("(element) => element.scrollLeft") == 300
        assert name.bounding_box() == before


def test_no_heading_is_the_last_line_of_a_printed_page(html):
    with opened(1280, "light") as page:
        show(page, html)
        page.emulate_media(media="print")
        assert page.locator("h2").first.evaluate("(element) => getComputedStyle(element).breakAfter") == "avoid"
