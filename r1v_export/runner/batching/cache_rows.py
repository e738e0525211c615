"""Rows of a decoder's cache, shared by requests: which holds what, and how large the cache is.

The rows of requests that are decoded are the first ones, so that a step runs on one contiguous part of the cache. A row
moves when its request begins to be decoded, when one before it ends, and when the cache shrinks; never between.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from functools import cached_property

from r1v_export.contract import CacheLimits, Engine
from r1v_export.count import Count
from r1v_export.errors import InputError
from r1v_export.log_event import log_event
from r1v_export.runner.batching.batch import CacheUsage
from r1v_export.runner.encoded_prompt import TokenSequence
from r1v_export.runner.kv_cache import CAPACITY_STEP, KVCache, open_cache, plan_capacity

_LOG = logging.getLogger(__name__)

LEAST_PREFIX = 16
"""Tokens that a prefix must save, to be copied from another row."""


@dataclass(eq=False)
class CacheRow:
    """One row.

    Attributes:
        index: where it lies in the cache now.
        tokens: what it holds.
        needed: slots that are reserved for its request; 0 for a row without a request.
        last_used: when its request ended, in requests.
    """

    index: int
    tokens: TokenSequence = field(default_factory=TokenSequence)
    needed: int = 0
    last_used: int = 0

    @property
    def owned(self) -> bool:
        """Whether a request has it."""
        return self.needed > 0


class CacheRows:
    """The rows of one cache that grows and shrinks within a budget.

    Args:
        engine: whose decoder is opened when the first row is asked for, if it is not open yet.
        max_positions: slots of a row, at most.
        max_rows: rows, at most.
        budget_bytes: of the whole cache; None for any.
        keep: keep what finished rows hold, for requests that begin alike.
        drafts: whether steps may check drafts.
    """

    def __init__(
        self,
        engine: Engine,
        max_positions: int,
        max_rows: int,
        budget_bytes: int | None = None,
        keep: bool = False,
        drafts: bool = False,
    ) -> None:
        self.engine, self.max_positions, self.keep = engine, max_positions, keep
        self.max_rows, self.budget_bytes, self.one_sequence = max_rows, budget_bytes, max_rows == 1 and not drafts
        self.decoding = 0
        """Rows 0 ... decoding - 1 are decoded."""
        self._cache: KVCache | None = None
        self._rows: list[CacheRow] = []
        self._requests = 0

    @property
    def cache(self) -> KVCache:
        """The decoder and its cache; there once a row was acquired."""
        assert self._cache is not None
        return self._cache

    @property
    def capacity(self) -> int:
        """Slots of each row."""
        return 0 if self._cache is None else self._cache.decoder.capacity

    @cached_property
    def limits(self) -> CacheLimits:
        """Of the engine."""
        return self.engine.cache_limits()

    def usage(self) -> CacheUsage:
        """How large the cache is now."""
        rows = len(self._rows)
        kept = sum(not row.owned and len(row.tokens) > 0 for row in self._rows)
        return CacheUsage(rows, kept, rows * self.capacity * self.limits.slot_bytes if rows else 0)

    def room_behind(self, prompt_tokens: int) -> int:
        """Slots behind a prompt in the largest row that the budget allows; at least 1.

        Raises:
            InputError: there is none.
        """
        room = self._longest - prompt_tokens
        if room < 1:
            raise InputError(
                "The request is too long for the key-value cache.",
                where="request",
                expected=f"fewer than {Count(self._longest, 'token')}, which {self.budget_bytes} bytes hold",
                found=f"{Count(prompt_tokens, 'token')}, {Count(self.limits.slot_bytes, 'byte')} each",
                fix="use a shorter prompt, fewer images or tiles, or raise the budget",
            )
        return room

    def has_room(self, needed: int) -> bool:
        """Whether the budget allows one more row, with room for `needed` tokens.

        Where no request has a row it does, if `room_behind` allows that many tokens.
        """
        return self._capacity_for(needed, new_rows=1) is not None

    def acquire(self, tokens: TokenSequence, needed: int) -> CacheRow:
        """A row with room for `needed` tokens, which may hold the beginning of `tokens`.

        `has_room` says whether there is one.
        """
        capacity = self._capacity_for(needed, new_rows=1)
        assert capacity is not None
        self._resize(min(self._allowed(capacity), self._wanted_rows(tokens)), capacity)
        row = self._choose(tokens)
        row.needed = needed
        # At least one token must go through the decoder, for its logits.
        self._truncate(row, min(row.tokens.common_prefix(tokens), len(tokens) - 1))
        return row

    def reserve(self, row: CacheRow, needed: int) -> bool:
        """Let a request's row have room for `needed` tokens; False while the budget does not allow that.

        For the only request there is it always does, if `room_behind` allows that many tokens.
        """
        if needed <= row.needed:
            return True
        capacity = self._capacity_for(needed, new_rows=0)
        if capacity is None:
            return False
        self._resize(min(self._allowed(capacity), len(self._rows)), capacity)
        row.needed = needed
        return True

    def reuse(self, row: CacheRow, tokens: TokenSequence) -> None:
        """Copy what another row holds of the beginning of `tokens` and this one does not, where that saves enough."""
        if not self.keep:
            return
        have = len(row.tokens)
        shared = [(min(each.tokens.common_prefix(tokens), len(tokens) - 1), each) for each in self._rows]
        most, source = max(shared, key=lambda pair: pair[0])
        if most >= have + LEAST_PREFIX:
            self.cache.copy_row(source.index, row.index, most)
            row.tokens.take(tokens, most)

    def place_next(self, *rows: CacheRow) -> None:
        """Let rows lie right behind those that are decoded, in this order."""
        for index, row in enumerate(rows, self.decoding):
            self._swap(row, self._rows[index])

    def start(self, row: CacheRow) -> None:
        """Let a row be decoded, with the others before it."""
        self.place_next(row)
        self.decoding += 1

    def release(self, row: CacheRow) -> None:
        """Take a row from its request."""
        if row.index < self.decoding:
            self.decoding -= 1
            self._swap(row, self._rows[self.decoding])
        self._requests += 1
        row.needed, row.last_used = 0, self._requests
        if not self.keep:
            self._truncate(row, 0)

    def longest_step(self) -> int:
        """Tokens that a step can give each row that is decoded, with the logits after each of them."""
        room = self.capacity - max(len(row.tokens) for row in self._rows[: self.decoding])
        positions = self.limits.logit_positions
        return room if positions is None else min(room, positions)

    def forget_rejected(self, row: CacheRow) -> None:
        """Let the cache hold the row's tokens alone, and no drafts behind them."""
        self.cache.truncate(row.index, len(row.tokens))

    def clear(self) -> None:
        """Free the cache."""
        self._cache, self._rows, self.decoding = None, [], 0

    @cached_property
    def _longest(self) -> int:
        """Slots that a row can have; 0 where there can be none."""
        fixed = self.limits.capacity
        if fixed is not None:
            return min(fixed, self.max_positions) if self._allowed(fixed) else 0
        if self.budget_bytes is None:
            return self.max_positions
        slots = self.budget_bytes // self.limits.slot_bytes
        return self.max_positions if slots >= self.max_positions else slots // CAPACITY_STEP * CAPACITY_STEP

    def _capacity_for(self, needed: int, new_rows: int) -> int | None:
        """Capacity to have for a request that needs so many slots, with all others and so many new rows; None where the
        budget is too small for that now."""
        owned = [row.needed for row in self._rows if row.owned]
        least = self._round(max([needed, *owned]))
        as_is = self.capacity if needed <= self.capacity else self._round(max(least, 2 * self.capacity))
        return next((each for each in (as_is, least) if self._allowed(each) >= len(owned) + new_rows), None)

    def _allowed(self, capacity: int) -> int:
        """Rows of that capacity, at most."""
        if self.limits.capacity is not None and capacity > self.limits.capacity:
            return 0
        limits = [self.max_rows, self.limits.max_rows, None]
        if self.budget_bytes is not None:
            limits[2] = self.budget_bytes // (capacity * self.limits.slot_bytes)
        return min(limit for limit in limits if limit is not None)

    def _round(self, tokens: int) -> int:
        fixed = self.limits.capacity
        return plan_capacity(tokens, self.max_positions) if fixed is None else max(tokens, fixed)

    def _wanted_rows(self, tokens: TokenSequence) -> int:
        """Rows to have for a new request: one that it continues or an empty one, else twice as many."""
        rows = len(self._rows)
        empty = any(not row.owned and len(row.tokens) == 0 for row in self._rows)
        return rows if empty or self._continued(tokens) is not None else max(1, 2 * rows)

    def _resize(self, rows: int, capacity: int) -> None:
        if self._cache is None:
            self._cache = open_cache(self.engine, rows, capacity, one_sequence=self.one_sequence)
        elif (rows, capacity) != (len(self._rows), self.capacity):
            self._evict(rows, capacity)
            self._cache.resize(rows, capacity)
        else:
            return
        self._rows += [CacheRow(index) for index in range(len(self._rows), rows)]
        message = "cache: %(rows)s of %(capacity)s"
        log_event(_LOG, logging.DEBUG, message, rows=Count(rows, "row"), capacity=Count(capacity, "token"))

    def _evict(self, rows: int, capacity: int) -> None:
        """Bring the rows that stay below `rows`, and what they hold below `capacity`."""
        by_use = sorted(self._rows, key=lambda row: (row.owned, len(row.tokens) > 0, row.last_used), reverse=True)
        for row in by_use[rows:]:
            self._truncate(row, 0)
        gone = {id(row) for row in by_use[rows:]}
        holes = [row for row in self._rows[:rows] if id(row) in gone]
        for row in [row for row in self._rows[rows:] if id(row) not in gone]:
            self._swap(row, holes.pop())
        del self._rows[rows:]
        for row in self._rows:
            self._truncate(row, min(len(row.tokens), capacity))

    def _choose(self, tokens: TokenSequence) -> CacheRow:
        """The row for a new request: one that it continues, else an empty one, else that which was not used longest."""
        unowned = (row for row in self._rows if not row.owned)
        unused = min(unowned, key=lambda row: (len(row.tokens) > 0, row.last_used, row.index))
        return self._continued(tokens) or unused

    def _continued(self, tokens: TokenSequence) -> CacheRow | None:
        """The row without a request whose tokens, for the greater part, these begin with."""
        shared = [(row.tokens.common_prefix(tokens), row) for row in self._rows if not row.owned]
        most, closest = max(shared, key=lambda pair: pair[0], default=(0, None))
        return closest if closest and most >= LEAST_PREFIX and 2 * most >= len(closest.tokens) else None

    def _truncate(self, row: CacheRow, length: int) -> None:
        row.tokens.truncate(length)
        self.cache.truncate(row.index, length)

    def _swap(self, a: CacheRow, b: CacheRow) -> None:
        if a is b:
            return
        self.cache.swap_rows(a.index, b.index)
        a.index, b.index = b.index, a.index
        self._rows[a.index], self._rows[b.index] = a, b
