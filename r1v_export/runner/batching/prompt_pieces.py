"""Which tokens of which prompts a step computes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from r1v_export.contract import PrefillLimits
from r1v_export.runner.batching.cache_rows import LEAST_PREFIX, CacheRows
from r1v_export.runner.batching.row_state import RowState


class Piece(NamedTuple):
    """Tokens start ... stop - 1 of a request's prompt, of which its row holds those before."""

    state: RowState
    start: int
    stop: int

    @property
    def tokens(self) -> int:
        """How many."""
        return self.stop - self.start


class PromptPieces:
    """Cuts prompts into pieces for steps.

    The oldest prompt and the one with the fewest tokens left come first in turns: neither do short prompts wait for a
    long one, nor does a long one wait for ever, nor do prompts that are alike all wait for the last of them.

    Args:
        rows: that prompts are prefilled into.
        chunk: prompt tokens of a step, and of all steps between two that decode, at most; None for what the engine
            says, see `PrefillLimits`.
    """

    def __init__(self, rows: CacheRows, chunk: int | None) -> None:
        self._rows, self._given_chunk = rows, chunk
        self._prefilled = 0
        """Prompt tokens since others were decoded, in steps of `alone`."""
        self._shortest_next = False

    def alone(self, states: Sequence[RowState], decodes: bool) -> Piece | None:
        """What the next step prefills; None where it is to decode.

        Args:
            states: whose prompt is not in the cache.
            decodes: whether there are others to decode.
        """
        piece = self._cut(self._in_turn(states)[0], self._chunk, 1) if states else None
        if piece is None or (decodes and self._prefilled + piece.tokens > self._chunk):
            self._prefilled = 0
            return None
        self._prefilled += piece.tokens
        self._shortest_next = not self._shortest_next
        return piece

    def together(self, states: Sequence[RowState], decodes: bool) -> list[Piece]:
        """What the next step prefills: a piece of one prompt, and of others until there are as many tokens as the
        engine has in a step that decodes as well. Short pieces come first: what is computed alike lies together.

        Args:
            states: whose prompt is not in the cache.
            decodes: whether there are others to decode.
        """
        most = min(self._chunk, self._limits.together)
        room, pieces = most if decodes else self._chunk, list[Piece]()
        short_room = self._limits.short_tokens if decodes else most
        for state in self._in_turn(states):
            if room < 1:
                break
            piece = self._cut(state, room, self._limits.least)
            if piece is None and not pieces:
                piece = self._cut(state, room, 1)
            if piece is None or self._repeats(piece, pieces):
                continue
            if piece.tokens < self._limits.least:
                if pieces and piece.tokens > short_room:
                    continue
                short_room -= piece.tokens
            pieces.append(piece)
            room = min(room, most) - piece.tokens
        if pieces:
            self._shortest_next = not self._shortest_next
        return sorted(pieces, key=lambda piece: piece.tokens)

    @property
    def _limits(self) -> PrefillLimits:
        return self._rows.limits.prefill

    @property
    def _chunk(self) -> int:
        return self._given_chunk or self._limits.chunk

    def _in_turn(self, states: Sequence[RowState]) -> Sequence[RowState]:
        if not self._shortest_next:
            return states
        return sorted(states, key=lambda state: len(state.tokens) - len(state.row.tokens))

    def _repeats(self, piece: Piece, others: Sequence[Piece]) -> bool:
        """Whether others of the step compute what a prompt begins with: in the next step it copies that from them."""
        begins, most = len(piece.state.row.tokens) + LEAST_PREFIX, len(piece.state.tokens) - 1
        shared = (min(other.state.tokens.common_prefix(piece.state.tokens), other.stop, most) for other in others)
        return self._rows.keep and any(count >= begins for count in shared)

    def _cut(self, state: RowState, most: int, least: int) -> Piece | None:
        """The next tokens of a prompt, behind what another row holds of it; None where they, or what would be left, are
        fewer than `least`, and not the whole prompt."""
        self._rows.reuse(state.row, state.tokens)
        start, stop = len(state.row.tokens), len(state.tokens)
        if stop - start > most:
            stop = min(start + most, stop - least)
            if stop - start < least:
                return None
        return Piece(state, start, stop)
