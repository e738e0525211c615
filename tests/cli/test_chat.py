"""Conversations on a terminal: what a turn that fails or is stopped leaves behind."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest
from PIL import Image

from r1v_export.cli import chat
from r1v_export.errors import InputError
from r1v_export.runner.answer import TokenEvent


@pytest.mark.parametrize("end", [InputError("too long"), KeyboardInterrupt()], ids=["an error", "Ctrl-C"])
@pytest.mark.parametrize("when", ["asked", "answering"])
def test_images_of_a_turn_that_ends_early_are_shown_with_the_next_question(
    monkeypatch: pytest.MonkeyPatch, end: BaseException, when: str
) -> None:
    first, second = Image.new("RGB", (1, 1)), Image.new("RGB", (2, 2))
    asked: list[tuple[str, list[Image.Image]]] = []

    def ask(question: str, images: list[Image.Image]) -> Iterator[TokenEvent]:
        asked.append((question, list(images)))
        if len(asked) == 1 and when == "asked":
            raise end
        return answer(fails=len(asked) == 1)

    def answer(fails: bool) -> Iterator[TokenEvent]:
        if fails:
            raise end
        yield from ()

    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(chat, "_prompted", lambda: iter(["/image b.png", "one", "two", "three"]))
    chat.chat(ask, lambda path: second, list, [first])

    assert asked == [("one", [first, second]), ("two", [first, second]), ("three", [])]
