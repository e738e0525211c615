"""Which tokens of which prompts a step computes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from r1v_export.runner.batching.cache_rows import LEAST_PREFIX, CacheRows
from r1v_export.runner.batching.row_state import RowState

LEAST_WITH_OTHERS = 96
"""Prompt tokens of a step that decodes as well, at most, where what it decodes leaves no more room."""


class Piece(NamedTuple):
    """Tokens start ... stop - 1 of a request's prompt, of which its row holds those before."""

    state: RowState
    start: int
    stop: int

    def has(self, state: RowState) -> bool:
        """Whether it computes more of what another prompt begins with than that has in its row."""
        shared = self.state.tokens.common_prefix(state.tokens)
        return min(shared, self.stop) >= len(state.row.tokens) + LEAST_PREFIX


class PromptPieces:
    """Cuts prompts into pieces for steps.

    The oldest prompt and the one with the fewest tokens left come first in turns: neither do short prompts wait for a
    long one, nor does a long one wait for ever, nor do prompts that are alike all wait for the last of them.

    Args:
        rows: that prompts are prefilled into.
        chunk: prompt tokens of a step, and of all steps between two that decode, at most; None for what the engine
            says, see `CacheLimits`.
    """

    def __init__(self, rows: CacheRows, chunk: int | None) -> None:
        self._rows, self._given_chunk = rows, chunk
        self._prefilled = 0
        """Prompt tokens since others were decoded."""
        self._shortest_next = False

    def alone(self, states: Sequence[RowState], decodes: bool) -> Piece | None:
        """What the next step prefills; None where it is to decode.

        Args:
            states: whose prompt is not in the cache.
            decodes: whether there are others to decode.
        """
        in_turn = self._in_turn(states)
        if not in_turn:
            return None
        piece = self._cut(in_turn[0], self._chunk)
        if decodes and self._prefilled + piece.stop - piece.start > self._chunk:
            return None
        self._prefilled += piece.stop - piece.start
        self._shortest_next = not self._shortest_next
        return piece

    def together(self, states: Sequence[RowState], decoded: int) -> list[Piece]:
        """What the next step prefills of one prompt, and of further ones until it has the engine's `ragged_tokens`.

        Args:
            states: whose prompt is not in the cache.
            decoded: tokens of others that it decodes as well.
        """
        rest = self._rows.limits.ragged_tokens - decoded
        most = min(self._chunk, max(rest, LEAST_WITH_OTHERS) if decoded else rest)
        room = most if decoded else self._chunk
        pieces: list[Piece] = []
        for state in self._in_turn(states):
            if room < 1:
                break
            piece = self._cut(state, room)
            if self._rows.keep and any(other.has(state) for other in pieces):
                continue  # In the next step it copies what it has in common with that prompt.
            pieces.append(piece)
            room = min(room, most) - (piece.stop - piece.start)
        if pieces:
            self._shortest_next = not self._shortest_next
        return pieces

    def others_were_decoded(self) -> None:
        """Let the next steps prefill as many tokens again."""
        self._prefilled = 0

    @property
    def _chunk(self) -> int:
        return self._given_chunk or self._rows.limits.prefill_chunk

    def _in_turn(self, states: Sequence[RowState]) -> Sequence[RowState]:
        if not self._shortest_next:
            return states
        return sorted(states, key=lambda state: len(state.tokens) - len(state.row.tokens))

    def _cut(self, state: RowState, most: int) -> Piece:
        """The next tokens of a prompt, behind what another row holds of it."""
        self._rows.reuse(state.row, state.tokens)
        start = len(state.row.tokens)
        return Piece(state, start, min(start + most, len(state.tokens)))
