"""The page at / in a real browser: drop an image, ask, watch reasoning and answer appear."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import ConsoleMessage, Page, expect

from tests.browser import VIEWS, faint_texts, needs_chromium, opened

IMAGE = Path("examples/images/06-count.png")
ANSWER_MS = 60_000

pytestmark = needs_chromium


@pytest.fixture
def page(served: str) -> Iterator[Page]:
    with opened(1280, "light") as page:
        problems: list[str] = []
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda message: _keep(problems, message))
        page.goto(served)
        yield page
        assert problems == []


def _keep(problems: list[str], message: ConsoleMessage) -> None:
    """The browser itself reports answers that are errors, which the page shows."""
    if message.type == "error" and not message.text.startswith("Failed to load resource"):
        problems.append(message.text)


def test_a_person_asks_about_an_image_and_then_something_else(page):
    expect(page.locator("#state")).to_have_text("ready", timeout=ANSWER_MS)
    expect(page.locator("#model")).to_have_text("nano")
    page.set_input_files("#file", IMAGE)
    expect(page.locator(".thumbnail img")).to_have_count(1)
    page.fill("#question", "How many objects do you see?")
    page.fill("#temperature", "0")
    page.click("#send")
    turn = page.locator(".turn").first
    expect(turn.locator(".usage")).to_contain_text("tokens/s", timeout=ANSWER_MS)
    expect(turn.locator(".reasoning")).to_contain_text("I see")
    expect(turn.locator(".answer")).to_have_text("3")
    expect(page.locator(".thumbnail")).to_have_count(0)
    page.fill("#question", "What do you see?")
    page.keyboard.press("Enter")
    second = page.locator(".turn").nth(1)
    expect(second.locator(".usage")).to_contain_text("tokens/s", timeout=ANSWER_MS)
    page.click("#clear")
    expect(page.locator(".turn")).to_have_count(0)


def test_a_dropped_image_is_shown_and_can_be_taken_away(page):
    page.evaluate(
        """() => {
            const data = new DataTransfer();
            const bytes = Uint8Array.from(atob("R0lGODlhAQABAAAAACwAAAAAAQABAAA="), (c) => c.charCodeAt(0));
            data.items.add(new File([bytes], "x.gif", { type: "image/gif" }));
            document.dispatchEvent(new DragEvent("drop", { dataTransfer: data, bubbles: true }));
        }"""
    )
    expect(page.locator(".thumbnail img")).to_have_count(1)
    page.click(".thumbnail button")
    expect(page.locator(".thumbnail img")).to_have_count(0)


def test_an_error_is_shown_and_the_next_question_is_answered(page):
    page.fill("#temperature", "0")
    page.fill("#question", "x" * 70_000)
    page.click("#send")
    expect(page.locator(".error")).to_contain_text("longer than the model's context", timeout=ANSWER_MS)
    page.fill("#question", "What do you see?")
    page.click("#send")
    expect(page.locator(".turn").nth(1).locator(".usage")).to_contain_text("tokens/s", timeout=ANSWER_MS)


def test_the_page_names_its_background_in_the_dark_and_cuts_no_hint_of_a_field(served):
    with opened(500, "dark") as page:
        page.goto(served)
        for element in ("html", "body"):
            expect(page.locator(element)).to_have_css("background-color", "rgb(20, 23, 26)")
        room = page.locator("#temperature").evaluate(
            """(field) => {
              const style = getComputedStyle(field), pen = document.createElement("canvas").getContext("2d");
              pen.font = style.font;
              const padding = parseFloat(style.paddingLeft) + parseFloat(style.paddingRight);
              return field.clientWidth - padding - pen.measureText(field.placeholder).width;
            }"""
        )
        assert room > 16, "the arrows of a number field are 16 pixels wide"


@pytest.mark.parametrize(("width", "theme"), VIEWS)
def test_every_text_stands_out_from_its_background(served, width, theme):
    with opened(width, theme) as page:
        page.goto(served)
        expect(page.locator("#state")).to_have_text("ready", timeout=ANSWER_MS)
        assert faint_texts(page) == []
        page.set_input_files("#file", IMAGE)
        page.fill("#temperature", "0")
        page.fill("#question", "How many objects do you see?")
        page.click("#send")
        expect(page.locator(".usage")).to_contain_text("tokens/s", timeout=ANSWER_MS)
        page.fill("#question", "x" * 70_000)
        page.click("#send")
        expect(page.locator(".error")).to_be_visible(timeout=ANSWER_MS)
        assert faint_texts(page) == []
        assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_the_images_of_a_question_have_names_and_the_choice_of_images_shows_the_focus(page):
    page.keyboard.press("Tab")
    expect(page.locator("#drop")).to_have_css("outline-style", "solid")
    page.set_input_files("#file", IMAGE)
    page.fill("#question", "How many objects do you see?")
    page.click("#send")
    expect(page.locator(".question img")).to_have_attribute("alt", "image 1")
    expect(page.locator(".usage")).to_contain_text("tokens/s", timeout=ANSWER_MS)
