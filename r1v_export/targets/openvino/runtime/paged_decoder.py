"""The decoder graph over a pool of blocks: rows of any length in one run, none of them padded.

Letters: B rows, S new tokens of each, P of them with logits, W of all rows with logits, E hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import chain
from typing import Any, NamedTuple

import numpy as np

from r1v_export import contract
from r1v_export.contract import Sizes
from r1v_export.targets.openvino.boundary import (
    BLOCK_INDICES,
    BLOCK_INDICES_BEGINS,
    MAX_CONTEXT_LEN,
    PAST_LENS,
    PROMPT_TOKENS,
    SUBSEQUENCE_BEGINS,
    pool_pairs,
)
from r1v_export.targets.openvino.library import ov
from r1v_export.targets.openvino.runtime.cut_head import HEAD_INPUT
from r1v_export.targets.openvino.runtime.model import Compiled
from r1v_export.targets.openvino.runtime.paged_attention import BLOCK, new_pool, pool_shape
from r1v_export.targets.openvino.runtime.run import naming

TOKENS_AT_ONCE = 512
"""New tokens from which on further rows go into another run: it bounds what activations take."""
PADDED_PART = 0.8
"""Of the next multiple of `DecoderGraphs.full_rows`, from which on tokens are filled up to it."""
BLOCKS = 8
"""Rows grow by so many blocks: the pools are copied then."""


class DecoderGraphs(NamedTuple):
    """The graphs that a decoder runs, on the same pools."""

    steps: Compiled
    prompts: Compiled
    """That for rows of `PROMPT_TOKENS` new tokens or more; may be the same."""
    head: Compiled
    """What makes logits of what both give."""
    pools: ov.Type
    """What the pools hold."""
    full_rows: int = 1
    """What numbers of tokens that `prompts` computes fastest are multiples of."""
    one_token: bool = False
    """Whether `steps` has static shapes, those of one new token of one row; `prompts` then computes all else."""


class BoundGraph:
    """A graph on one decoder's pools, which are to be bound first, or its head."""

    def __init__(self, compiled: Compiled) -> None:
        self._compiled, self._request = compiled, compiled.model.create_infer_request()
        self._inputs: dict[str, np.ndarray] = {}

    def bind(self, name: str, tensor: ov.Tensor) -> None:
        """Let runs read and write an input in place."""
        self._request.set_tensor(name, tensor)

    def run(self, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        """What the head takes [1, W, E], or the head's logits [1, W, V]; valid until the next run.

        Args:
            inputs: all but the pools; arrays that later runs may overwrite.

        Raises:
            GraphError: OpenVINO fails.
        """
        with self._compiled.weights.packing(), naming(contract.DECODER, inputs):
            for name, array in inputs.items():
                bound = self._inputs.get(name)
                if bound is not None and (bound.shape, bound.dtype) == (array.shape, array.dtype):
                    bound[...] = array  # of a step, in a tenth of the time of binding another tensor
                else:
                    self._request.set_tensor(name, ov.Tensor(array, shared_memory=True))
                    self._inputs[name] = array
            self._request.infer()
            output: np.ndarray = self._request.get_output_tensor().data
            return output


class PagedDecoder:
    """The decoder for `batch` sequences of up to `capacity` tokens, float32 in and out.

    The pool of a layer's keys, or values, is one array that runs read and write in place. Each row has as many blocks
    of it as the longest row needs so far, in steps of `BLOCKS`, one after the other; which ones is a number, so that
    rows change places without a copy. Where runs are padded, one more block takes what padding has.

    Args:
        graphs: what it runs.
        on_decoding: called behind each step of one new token per row.
    """

    def __init__(
        self,
        graphs: DecoderGraphs,
        sizes: Sizes,
        batch: int,
        capacity: int,
        on_decoding: Callable[[], None] = lambda: None,
    ) -> None:
        self.sizes, self.batch, self.capacity, self._pool_type = sizes, batch, capacity, graphs.pools
        self.on_decoding, self._full_rows = on_decoding, graphs.full_rows
        self._steps, self._one_token = BoundGraph(graphs.steps), graphs.one_token
        self._prompts = self._steps if graphs.prompts is graphs.steps else BoundGraph(graphs.prompts)
        self._head = BoundGraph(graphs.head)
        self._pools: dict[str, np.ndarray] = dict.fromkeys(chain(*pool_pairs(sizes.layers)), np.empty(0))
        """By the graph's inputs."""
        self._row_blocks = 0
        self._places_B = np.arange(0)
        """Of each row: its part of the pools."""
        self._reallocate(batch, 0, np.zeros(0, np.int64))

    def step(
        self,
        inputs_embeds: np.ndarray,
        position_ids: np.ndarray,
        cache_write_index: np.ndarray,
        cache_length: np.ndarray,
        logits_index: np.ndarray,
        first_row: int = 0,
    ) -> np.ndarray:
        new_B = logits_index.max(axis=1) + 1
        longest = int((cache_write_index + new_B).max())
        if longest > self._row_blocks * BLOCK:
            self._reallocate(self.batch, longest, np.full(self.batch, self._row_blocks * BLOCK))
        logits_BPV = np.empty((*logits_index.shape, self.sizes.vocab), np.float32)
        for rows in self._runs(new_B):
            self._run(
                [embeds_SE[:new] for embeds_SE, new in zip(inputs_embeds[rows], new_B[rows], strict=True)],
                [ids_S[:new] for ids_S, new in zip(position_ids[rows], new_B[rows], strict=True)],
                cache_write_index[rows],
                logits_index[rows],
                self._places_B[first_row + rows.start : first_row + rows.stop],
                logits_BPV[rows],
            )
        if new_B.max() == 1:
            self.on_decoding()
        return logits_BPV

    def copy_row(self, source: int, target: int, length: int) -> None:
        for pool in self._pools.values():
            parts = self._parts(pool)
            parts[self._places_B[target], : _blocks(length)] = parts[self._places_B[source], : _blocks(length)]

    def swap_rows(self, a: int, b: int, length: int) -> None:
        self._places_B[[a, b]] = self._places_B[[b, a]]

    def resize(self, batch: int, capacity: int, lengths: np.ndarray) -> None:
        kept = lengths[: min(batch, self.batch)]
        self.batch, self.capacity = batch, capacity
        self._reallocate(batch, int(kept.max(initial=0)), kept)

    def _run(
        self,
        embeds: list[np.ndarray],
        position_ids: list[np.ndarray],
        past_B: np.ndarray,
        logits_index_BP: np.ndarray,
        places_B: np.ndarray,
        logits_BPV: np.ndarray,
    ) -> None:
        """Run graph and head once for the new tokens of some rows, [tokens, hidden] each, and fill in their logits."""
        new_B = np.array([len(each) for each in embeds])
        graph, begins = self._graph_of(new_B), _begins(new_B)
        # An index that repeats, as where rows have drafts of different lengths, costs no second product of the head.
        wanted, places_of_wanted = np.unique(logits_index_BP + begins[:-1, None], return_inverse=True)
        padding = self._padding(int(begins[-1])) if graph is self._prompts else np.zeros(0, np.int64)
        zeros = np.zeros((int(padding.sum()), embeds[0].shape[1]))
        new_R, past_R = np.append(new_B, padding), np.append(past_B, 0 * padding)
        blocks_R = _blocks(past_R + new_R)
        first_R = np.append(places_B * self._row_blocks, np.full_like(padding, self.batch * self._row_blocks))
        indices = [first + np.arange(count) for first, count in zip(first_R, blocks_R, strict=True)]
        inputs: dict[str, np.ndarray] = {
            contract.INPUTS_EMBEDS: np.concatenate([*embeds, zeros], dtype=np.float32)[None],
            contract.POSITION_IDS: np.concatenate([*position_ids, *map(np.arange, padding)], dtype=np.int64)[None],
            contract.LOGITS_INDEX: wanted[None],
            PAST_LENS: past_R.astype(np.int32),
            SUBSEQUENCE_BEGINS: _begins(new_R).astype(np.int32),
            BLOCK_INDICES: np.concatenate(indices).astype(np.int32),
            BLOCK_INDICES_BEGINS: _begins(blocks_R).astype(np.int32),
            MAX_CONTEXT_LEN: np.array((past_R + new_R).max(), np.int32),
        }
        # A copy, since the head keeps what it was given and the next run changes it.
        hidden_1WE = graph.run(inputs).copy()
        logits_1WV = self._head.run({HEAD_INPUT: hidden_1WE})
        # Without a copy between: 32 rows of Qwen2's words, 8 of a draft each, are 175 MB.
        np.take(logits_1WV[0], places_of_wanted.reshape(logits_index_BP.shape), 0, out=logits_BPV, mode="clip")

    def _runs(self, new_B: np.ndarray) -> Iterator[slice]:
        """Neighbors that run together. Where prompts have a graph of their own, they run apart from rows of few new
        tokens: so the same graph computes a row whatever others there are."""
        start = tokens = 0
        prompts_B = (new_B >= PROMPT_TOKENS) & (self._prompts is not self._steps)
        for row, new in enumerate(new_B):
            if row > start and (tokens + new > TOKENS_AT_ONCE or prompts_B[row] != prompts_B[row - 1]):
                yield slice(start, row)
                start, tokens = row, 0
            tokens += int(new)
        yield slice(start, len(new_B))

    def _graph_of(self, new_B: np.ndarray) -> BoundGraph:
        """What computes so many new tokens of each row."""
        exceeds_steps = self._one_token and new_B.sum() > 1
        return self._prompts if exceeds_steps or new_B.max() >= PROMPT_TOKENS else self._steps

    def _padding(self, tokens: int) -> np.ndarray:
        """Lengths of sequences of zeros that fill so many tokens up, where more of them take less time; they begin
        alike, and so may share a block."""
        full = -(-tokens // self._full_rows) * self._full_rows
        missing = full - tokens if tokens >= PADDED_PART * full else 0
        return np.minimum(BLOCK, missing - np.arange(0, missing, BLOCK))

    def _reallocate(self, batch: int, slots: int, lengths_B: np.ndarray) -> None:
        """Give each row so many slots of its capacity at least, and keep what rows hold of theirs.

        Args:
            lengths_B: of the rows that are kept, int64.
        """
        blocks = min(-(-max(1, slots) // (BLOCKS * BLOCK)) * BLOCKS, max(1, _blocks(self.capacity)))
        padded = self._full_rows > 1
        shape = pool_shape(batch * blocks + padded, self.sizes.kv_heads, self.sizes.head_dim)
        for name, old in self._pools.items():
            # One pool after the other, so that little is there twice.
            new, tensor = new_pool(shape, self._pool_type)
            for row, count in enumerate(map(int, _blocks(lengths_B))):
                begin, kept = row * blocks, min(count, blocks)
                old_begin = int(self._places_B[row]) * self._row_blocks
                new[begin : begin + kept] = old[old_begin : old_begin + kept]
            self._pools[name] = new
            for graph in (self._steps, self._prompts):
                graph.bind(name, tensor)
        self._row_blocks, self._places_B = blocks, np.arange(batch)

    def _parts(self, pool: np.ndarray) -> np.ndarray:
        """A pool as [rows, blocks of a row, kv_heads, slots of a block, head_dim]."""
        return pool[: self.batch * self._row_blocks].reshape(self.batch, self._row_blocks, *pool.shape[1:])


def _blocks(slots: np.ndarray | int) -> Any:
    """How many blocks hold so many slots."""
    return -(-slots // BLOCK)


def _begins(counts: np.ndarray) -> np.ndarray:
    """Where each of several parts begins, and where the last one ends."""
    return np.concatenate([[0], np.cumsum(counts)])
