"""Text from tokens as they come: whole characters only, and nothing of a stop string."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
"""What a decoder makes of bytes that are no UTF-8, a character's first bytes among them."""


class Detokenizer:
    """Tokens in, text out; a character whose bytes are spread over several tokens comes out once it is whole.

    Args:
        decode: token ids -> text, concatenating the tokens' bytes (byte-level BPE).
    """

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode
        self._pending: list[int] = []
        self._emitted = 0  # characters of the pending tokens' text that are already out

    def push(self, token_id: int) -> str:
        """The text that `token_id` completes; empty while a character is unfinished."""
        self._pending.append(token_id)
        text = self._decode(self._pending)
        if not text.endswith(REPLACEMENT):
            return self._emit_all(text)
        # Only the last character can still change: an unfinished one shows as a single replacement character.
        fresh = text[self._emitted : -1]
        self._emitted += len(fresh)
        return fresh

    def flush(self) -> str:
        """What is held back at the end: replacement characters for bytes that never became a character."""
        return self._emit_all(self._decode(self._pending)) if self._pending else ""

    def _emit_all(self, text: str) -> str:
        fresh = text[self._emitted :]
        self._pending, self._emitted = [], 0
        return fresh


class StopStrings:
    """Cuts a stream of text before the first stop string, which may arrive in pieces."""

    def __init__(self, stops: Sequence[str]) -> None:
        self.stops = tuple(stops)
        self.stopped = False
        self._held = ""

    def push(self, text: str) -> str:
        """The part of the text so far that cannot belong to a stop string; sets `stopped` when one is whole."""
        if self.stopped or not self.stops:
            return "" if self.stopped else text
        text = self._held + text
        starts = [start for start in map(text.find, self.stops) if start >= 0]
        if starts:
            self.stopped, self._held = True, ""
            return text[: min(starts)]
        safe = len(text) - partial_tag_length(text, self.stops)
        self._held = text[safe:]
        return text[:safe]

    def flush(self) -> str:
        """What is held back at the end."""
        held, self._held = self._held, ""
        return held


def partial_tag_length(text: str, tags: Iterable[str]) -> int:
    """Length of the longest end of `text` that begins one of `tags` but is not the whole of it; 0 if there is none."""
    longest = 0
    for tag in tags:
        for length in range(min(len(tag) - 1, len(text)), longest, -1):
            if text.endswith(tag[:length]):
                longest = length
                break
    return longest
