"""Reasoning and answer, separated in a stream of text.

R1V prompts end in `<think>`, so an answer starts inside the reasoning and `</think>` ends it. The tags are searched for
in text, not in token ids: R1V3's tokenizer has no tokens for them and spells them out over several.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

from r1v_export.runner.streaming import partial_tag_length

OPEN, CLOSE = "<think>", "</think>"


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
    * White space around reasoning and answer is dropped, so white space is held back until text follows it.
    """

    def __init__(self, thinking: bool = True) -> None:
        self._channel: Literal["reasoning", "answer"] = "reasoning" if thinking else "answer"
        self._at_start = True
        self._held = ""

    @property
    def in_reasoning(self) -> bool:
        return self._channel == "reasoning"

    def push(self, text: str) -> Piece:
        """What `text` makes certain."""
        self._held += text
        reasoning, answer = "", ""
        while True:
            channel, certain, switched = self._channel, *self._advance()
            if channel == "reasoning":
                reasoning += certain
            else:
                answer += certain
            if not switched:
                return Piece(reasoning, answer)

    def flush(self) -> Piece:
        """The rest, at the end of the text: an unfinished tag is text, white space at the end is dropped."""
        rest, self._held = self._held.strip() if self._at_start else self._held.rstrip(), ""
        return Piece(reasoning=rest) if self.in_reasoning else Piece(answer=rest)

    def _advance(self) -> tuple[str, bool]:
        """One move of the state machine: the certain text, and whether a tag was passed."""
        if self._at_start and not self._pass_start():
            return "", False
        if self._at_start and self._held.startswith(OPEN):
            self._held, self._channel = self._held[len(OPEN) :], "reasoning"
            return "", True
        self._at_start = False
        if self.in_reasoning and (end := self._held.find(CLOSE)) >= 0:
            certain, self._held = self._held[:end].rstrip(), self._held[end + len(CLOSE) :]
            self._channel, self._at_start = "answer", True
            return certain, True
        return self._take_certain(), False

    def _pass_start(self) -> bool:
        """Drop white space at the start; false while what follows may still become `<think>`."""
        self._held = self._held.lstrip()
        return bool(self._held) and (self._held.startswith(OPEN) or not OPEN.startswith(self._held))

    def _take_certain(self) -> str:
        uncertain = partial_tag_length(self._held, (CLOSE,)) if self.in_reasoning else 0
        certain = self._held[: len(self._held) - uncertain].rstrip()
        self._held = self._held[len(certain) :]
        return certain


def split_reasoning(text: str, thinking: bool = True) -> Reasoning:
    """The reasoning and the answer of a finished text."""
    splitter = ReasoningSplitter(thinking)
    pieces = (splitter.push(text), splitter.flush())
    reasoning, answer = ("".join(part) for part in zip(*pieces, strict=True))
    return Reasoning(reasoning, answer, complete=not splitter.in_reasoning)
