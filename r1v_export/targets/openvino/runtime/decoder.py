"""The decoder graph and its key-value cache, which the graph reads and this module writes."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from r1v_export import contract
from r1v_export.contract import Sizes
from r1v_export.targets.openvino.boundary import cache_pairs
from r1v_export.targets.openvino.library import ov
from r1v_export.targets.openvino.runtime.model import Compiled
from r1v_export.targets.openvino.runtime.run import naming

TOKENS_AT_ONCE = 512
"""New tokens of one run, at most: scores are heads x new tokens x all tokens, and longer prompts gain nothing."""
TOGETHER = 16
"""New tokens of each row up to which rows run together, padding included; prompts run row by row, without padding."""
SLOTS = 256
"""The cache grows by so many slots: each run attends to all that there are, in use or not."""


class _Step(NamedTuple):
    """Inputs of a run for neighboring rows, of the contract's shapes."""

    inputs_embeds: np.ndarray
    position_ids: np.ndarray
    cache_write_index: np.ndarray
    logits_index: np.ndarray


class OpenVinoDecoder:
    """The decoder for `batch` sequences of up to `capacity` tokens, float32 whatever its products round to.

    Each tensor of the cache is one array [batch, kv_heads, slots, head_dim] that runs read in place. It has as many
    slots as the longest row needs so far, in steps of `SLOTS`.

    Args:
        on_decoding: called behind each step of one new token per row.
    """

    def __init__(
        self,
        compiled: Compiled,
        sizes: Sizes,
        batch: int,
        capacity: int,
        on_decoding: Callable[[], None] = lambda: None,
    ) -> None:
        self.sizes, self.batch, self.capacity, self.on_decoding = sizes, batch, capacity, on_decoding
        self._compiled, self._request = compiled, compiled.model.create_infer_request()
        self._pairs = cache_pairs(sizes.layers)
        self._outputs = {
            name: compiled.model.output(name) for name in (contract.LOGITS, *(new for _, new in self._pairs))
        }
        self._slots = 0
        self._cache: dict[str, np.ndarray] = {}
        self._empty = np.zeros((1, sizes.kv_heads, 1, sizes.head_dim), np.float32)
        self._bound: tuple[object, ...] = ()
        """What the cache's inputs are bound to: rows and the number of slots."""
        self._reallocate(batch, 0)

    def step(
        self,
        inputs_embeds: np.ndarray,
        position_ids: np.ndarray,
        cache_write_index: np.ndarray,
        cache_length: np.ndarray,
        logits_index: np.ndarray,
        first_row: int = 0,
    ) -> np.ndarray:
        step = _Step(inputs_embeds, position_ids, cache_write_index, logits_index)
        rows, seq = inputs_embeds.shape[:2]
        if seq <= TOGETHER:
            together = self._run(step, first_row)
            if seq == 1:
                self.on_decoding()
            return together
        logits = [
            self._prompt(_Step(*(array[row : row + 1] for array in step)), first_row + row) for row in range(rows)
        ]
        return np.concatenate(logits)

    def copy_row(self, source: int, target: int, length: int) -> None:
        for cache_BKCD in self._cache.values():
            cache_BKCD[target, :, :length] = cache_BKCD[source, :, :length]

    def swap_rows(self, a: int, b: int, length: int) -> None:
        for cache_BKCD in self._cache.values():
            cache_BKCD[[a, b], :, :length] = cache_BKCD[[b, a], :, :length]

    def resize(self, batch: int, capacity: int, lengths: np.ndarray) -> None:
        kept = lengths[: min(batch, self.batch)]
        self.batch, self.capacity = batch, capacity
        self._reallocate(batch, int(kept.max(initial=0)), kept)

    def _prompt(self, step: _Step, row: int) -> np.ndarray:
        """Logits [1, logit_positions, vocab] of one row's tokens up to the last whose logits are asked for."""
        index_P, length = step.logits_index[0], int(step.logits_index.max()) + 1
        logits_1PV = np.empty((1, len(index_P), self.sizes.vocab), np.float32)
        for start in range(0, length, TOKENS_AT_ONCE):
            stop = min(start + TOKENS_AT_ONCE, length)
            here = np.flatnonzero((index_P >= start) & (index_P < stop))
            piece = _Step(
                step.inputs_embeds[:, start:stop],
                step.position_ids[:, start:stop],
                step.cache_write_index + start,
                # A run gives the logits of one token at least.
                index_P[here][None] - start if len(here) else np.zeros((1, 1), np.int64),
            )
            logits = self._run(piece, row)
            if len(here):
                logits_1PV[:, here] = logits
        return logits_1PV

    def _run(self, step: _Step, first_row: int) -> np.ndarray:
        """Run the graph for rows from `first_row` on, and write their new keys and values into the cache."""
        rows, seq = step.inputs_embeds.shape[:2]
        used = int(step.cache_write_index.max())
        if used + seq > self._slots:
            self._reallocate(self.batch, used + seq)
        self._bind(first_row, rows, empty=used == 0)
        inputs: dict[str, np.ndarray] = {
            contract.INPUTS_EMBEDS: np.ascontiguousarray(step.inputs_embeds, np.float32),
            contract.POSITION_IDS: np.ascontiguousarray(step.position_ids, np.int64),
            contract.CACHE_WRITE_INDEX: np.ascontiguousarray(step.cache_write_index, np.int64),
            contract.LOGITS_INDEX: np.ascontiguousarray(step.logits_index, np.int64),
        }
        with self._compiled.weights.packing(), naming(contract.DECODER, inputs):
            for name, array in inputs.items():
                self._request.set_tensor(name, ov.Tensor(array, shared_memory=True))
            self._request.infer()
            self._write(first_row, step.cache_write_index, seq)
            return self._output(contract.LOGITS).astype(np.float32)

    def _bind(self, first_row: int, rows: int, empty: bool) -> None:
        """Let the graph read the cache of some rows; of an empty one, a slot that no token sees."""
        bound = first_row, rows, 0 if empty else self._slots
        if bound == self._bound:
            return
        for past, _ in self._pairs:
            cache_BKCD = self._cache[past]
            part = np.repeat(self._empty, rows, axis=0) if empty else cache_BKCD[first_row : first_row + rows]
            self._request.set_tensor(past, ov.Tensor(part, shared_memory=True))
        self._bound = bound

    def _write(self, first_row: int, cache_write_index: np.ndarray, seq: int) -> None:
        rows = len(cache_write_index)
        row_B1 = np.arange(first_row, first_row + rows)[:, None]
        slot_BS = cache_write_index[:, None] + np.arange(seq)
        start = int(cache_write_index[0])
        for past, new in self._pairs:
            cache_BKCD, new_BKSD = self._cache[past], self._output(new)
            if rows == 1:
                cache_BKCD[first_row, :, start : start + seq] = new_BKSD[0]
            else:
                # Indices around a slice come first: [batch, seq, kv_heads, head_dim].
                cache_BKCD[row_B1, :, slot_BS] = new_BKSD.transpose(0, 2, 1, 3)

    def _output(self, name: str) -> np.ndarray:
        """An output of the last run, valid until the next."""
        content: np.ndarray = self._request.get_tensor(self._outputs[name]).data
        return content

    def _reallocate(self, batch: int, slots: int, lengths: np.ndarray | None = None) -> None:
        """Give the cache this many rows, and at least this many slots of its capacity, keeping what rows hold.

        Args:
            lengths: of the rows that are kept, int64; all of every row if None.
        """
        slots = min(max(1, self.capacity), -(-max(1, slots) // SLOTS) * SLOTS)
        shape = (batch, self.sizes.kv_heads, slots, self.sizes.head_dim)
        for past, _ in self._pairs:
            # One tensor after the other, so that little is there twice.
            old_BKCD, new_BKCD = self._cache.pop(past, None), np.zeros(shape, np.float32)
            if old_BKCD is not None:
                kept = np.full(len(old_BKCD), old_BKCD.shape[2]) if lengths is None else lengths
                for row, length in enumerate(kept):
                    new_BKCD[row, :, :length] = old_BKCD[row, :, :length]
            self._cache[past] = new_BKCD
        self._slots, self._bound = slots, ()
