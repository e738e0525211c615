"""Pages in headless Chromium: what a person with it could not read or reach."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import pytest
from playwright.sync_api import Page, sync_playwright

CHROMIUM = shutil.which("chromium")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no chromium: `make test` installs it on Debian")

Theme = Literal["light", "dark"]
VIEWS: tuple[tuple[int, Theme], ...] = ((1280, "light"), (1280, "dark"), (500, "light"), (500, "dark"))
"""Width in CSS pixels, and the color scheme that the reader prefers."""

_FAINT = """() => {
  const rgba = (color) => { const v = color.match(/[\\d.]+/g).map(Number); return [v[0], v[1], v[2], v[3] ?? 1]; };
  const over = (top, below) => [0, 1, 2].map((i) => top[i] * top[3] + below[i] * (1 - top[3])).concat([1]);
  const linear = (v) => (v / 255 <= 0.04045 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4);
  const luminance = (c) => 0.2126 * linear(c[0]) + 0.7152 * linear(c[1]) + 0.0722 * linear(c[2]);
  const canvas = matchMedia("(prefers-color-scheme: dark)").matches ? [18, 18, 18, 1] : [255, 255, 255, 1];
  const background = (element) => {
    const layers = [];
    for (let e = element; e; e = e.parentElement) layers.push(rgba(getComputedStyle(e).backgroundColor));
    return layers.reverse().reduce((below, layer) => over(layer, below), canvas);
  };
  const found = [];
  const measure = (text, element, color) => {
    const below = background(element);
    const [dark, bright] = [over(rgba(color), below), below].map(luminance).sort((a, b) => a - b);
    const ratio = (bright + 0.05) / (dark + 0.05);
    if (ratio < 4.5) found.push(`${text.trim().slice(0, 40)}: ${ratio.toFixed(2)}`);
  };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || !element.getClientRects().length) continue;
    const style = getComputedStyle(element);
    measure(walker.currentNode.data, element, element.closest("svg") ? style.fill : style.color);
  }
  const shown = [...document.querySelectorAll("[placeholder]")].filter((field) => field.getClientRects().length);
  for (const field of shown) measure(field.placeholder, field, getComputedStyle(field, "::placeholder").color);
  return found;
}"""


@contextmanager
def opened(width: int, theme: Theme) -> Iterator[Page]:
    """An empty page of a browser as wide as that, whose reader prefers that color scheme."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser.new_page(viewport={"width": width, "height": 900}, color_scheme=theme)
        browser.close()


def faint_texts(page: Page) -> list[str]:
    """Texts whose contrast with their background is below 4.5, the least of WCAG 2.2 at level AA."""
    found: list[str] = page.evaluate(_FAINT)
    return found


def unreachable_scrollers(page: Page) -> list[str]:
    """Elements that scroll sideways and that a keyboard cannot reach: the start of their markup."""
    found: list[str] = page.evaluate(
        """() => [...document.querySelectorAll("body *")]
          .filter((e) => e.scrollWidth > e.clientWidth + 1 && getComputedStyle(e).overflowX === "auto")
          .filter((e) => e.tabIndex < 0).map((e) => e.outerHTML.slice(0, 80))"""
    )
    return found


def scrolling_tables(page: Page) -> list[str]:
    """Names of the tables' regions that are wider than the window."""
    found: list[str] = page.evaluate(
        """() => [...document.querySelectorAll(".scroll")]
          .filter((e) => e.scrollWidth > e.clientWidth + 1).map((e) => e.getAttribute("aria-label"))"""
    )
    return found


def show(page: Page, html: str) -> None:
    """Put a report onto an open page, with all that can be unfolded unfolded."""
    page.set_content(html)
    page.evaluate("document.querySelectorAll('details').forEach((details) => (details.open = true))")
