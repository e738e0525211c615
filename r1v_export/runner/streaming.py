"""Text from tokens as they come: whole characters only, and nothing of a stop string."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterable, Sequence


class Detokenizer:
    """Tokens in, text out; a character whose bytes are spread over several tokens comes out once it is whole.

    Bytes that are not UTF-8 become U+FFFD. The time is linear in the number of tokens, whatever bytes they are.

    Args:
        token_bytes: token id -> its bytes (byte-level BPE).
    """

    def __init__(self, token_bytes: Callable[[int], bytes]) -> None:
        self._token_bytes = token_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token_id: int) -> str:
        """The text that `token_id` completes; empty while a character is unfinished."""
        return self._decoder.decode(self._token_bytes(token_id))

    def flush(self) -> str:
        """U+FFFD if the text ends inside a character, else nothing."""
        return self._decoder.decode(b"", final=True)


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


class TrailingSpace:
    """Holds back white space until text follows it, so that a text does not end in it."""

    def __init__(self) -> None:
        self._held = ""

    def push(self, text: str) -> str:
        """The text up to its last character that is not white space."""
        text = self._held + text
        certain = text.rstrip()
        self._held = text[len(certain) :]
        return certain


def partial_tag_length(text: str, tags: Iterable[str]) -> int:
    """Length of the longest end of `text` that begins one of `tags` but is not the whole of it; 0 if there is none."""
    longest = 0
    for tag in tags:
        for length in range(min(len(tag) - 1, len(text)), longest, -1):
            if text.endswith(tag[:length]):
                longest = length
                break
    return longest
