"""Reasoning and answer, separated in a stream of text.

R1V prompts end in `<think>`, so an answer starts inside the reasoning and `</think>` ends it. The tags are searched for
in text, not in token ids: R1V3's tokenizer has no tokens for them and spells them out over several.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from r1v_export.runner.streaming import StopStrings, TrailingSpace, partial_tag_length

TAGS = ("<think>", "</think>")
"""What opens and ends reasoning, in every family so far; a bundle's `pipeline.json` names its own."""


class Piece(NamedTuple):
    """Text that has become certain, by where it belongs; either may be empty."""

    reasoning: str = ""
    answer: str = ""


@dataclass(frozen=True)
class Reasoning:
    """A whole answer, split. `complete` is false where the reasoning was never closed: everything is reasoning then."""

    reasoning: str
    answer: str
    complete: bool


class ReasoningSplitter:
    """Splits text that comes in pieces of any size; the pieces' sizes do not change the result.

    * With `thinking` the text starts inside reasoning; without, in the answer.
    * `<think>` counts only at the start of reasoning (a repetition of the prompt's, dropped) or at the start of the
      answer (the model thinks although it was not asked to, or once more); anywhere else it is text.
    * The first `</think>` inside reasoning ends it; in the answer it is text.
    * White space around reasoning and answer is dropped, so white space is held back until text follows it. Between two
      stretches of reasoning it is kept.

    Args:
        thinking: the prompt has opened reasoning.
        stops: the answer ends before the first of these strings. Reasoning, the tags and the white space before the
            answer are not searched.
        tags: what opens and ends reasoning.
    """

    def __init__(self, thinking: bool = True, stops: Sequence[str] = (), tags: tuple[str, str] = TAGS) -> None:
        self._open, self._close = tags
        self._channel: Literal["reasoning", "answer"] = "reasoning" if thinking else "answer"
        self._at_start = True
        self._held = ""
        self._stop_strings = StopStrings(stops)
        self._reasoning_end, self._answer_end = TrailingSpace(), TrailingSpace()
        self._has_reasoning = False

    @property
    def in_reasoning(self) -> bool:
        """Whether the next text belongs to the reasoning."""
        return self._channel == "reasoning"

    @property
    def stopped(self) -> bool:
        """The answer reached a stop string."""
        return self._stop_strings.stopped

    def push(self, text: str) -> Piece:
        """What `text` makes certain."""
        self._held += text
        reasoning, answer = "", ""
        while True:
            channel, certain, switched = self._channel, *self._advance()
            if channel == "reasoning":
                reasoning += self._reasoning_text(certain)
            else:
                answer += self._answer_end.push(self._stop_strings.push(certain))
            if not switched:
                return Piece(reasoning, answer)

    def flush(self) -> Piece:
        """The rest, at the end of the text: an unfinished tag is text, white space at the end is dropped."""
        rest, self._held = self._held, ""
        if self.in_reasoning:
            return Piece(reasoning=self._reasoning_text(rest))
        rest = self._stop_strings.push(rest.lstrip() if self._at_start else rest) + self._stop_strings.flush()
        return Piece(answer=self._answer_end.push(rest))

    def _reasoning_text(self, certain: str) -> str:
        text = self._reasoning_end.push(certain if self._has_reasoning else certain.lstrip())
        self._has_reasoning = self._has_reasoning or bool(text)
        return text

    def _advance(self) -> tuple[str, bool]:
        """One move of the state machine: the certain text of the channel it began in, and whether a tag was passed."""
        if self._at_start:
            body = self._held.lstrip()
            if body.startswith(self._open):
                return self._pass_open(space=self._held[: -len(body)])
            if self._open.startswith(body):  # Nothing yet, or what may still become the tag.
                return "", False
            self._at_start = False
            self._held = self._held if self.in_reasoning else body
        if not self.in_reasoning:
            certain, self._held = self._held, ""
            return certain, False
        if (end := self._held.find(self._close)) >= 0:
            certain, self._held = self._held[:end], self._held[end + len(self._close) :]
            self._channel, self._at_start = "answer", True
            return certain, True
        safe = len(self._held) - partial_tag_length(self._held, (self._close,))
        certain, self._held = self._held[:safe], self._held[safe:]
        return certain, False

    def _pass_open(self, space: str) -> tuple[str, bool]:
        """Enter reasoning. White space before the tag is put behind it: it parts this reasoning from any before it."""
        self._held, self._channel = space + self._held[len(space) + len(self._open) :], "reasoning"
        return "", True


class Unsplit:
    """Takes the place of `ReasoningSplitter` for a text that has no reasoning: all of it is answer, as it comes."""

    in_reasoning = False
    stopped = False

    def push(self, text: str) -> Piece:
        """The text."""
        return Piece(answer=text)

    def flush(self) -> Piece:
        """Nothing is held back."""
        return Piece()


def split_reasoning(text: str, thinking: bool = True, tags: tuple[str, str] = TAGS) -> Reasoning:
    """The reasoning and the answer of a finished text."""
    splitter = ReasoningSplitter(thinking, tags=tags)
    pieces = (splitter.push(text), splitter.flush())
    reasoning, answer = ("".join(part) for part in zip(*pieces, strict=True))
    return Reasoning(reasoning, answer, complete=not splitter.in_reasoning)
