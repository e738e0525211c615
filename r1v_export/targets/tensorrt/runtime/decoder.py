"""The decoder plan with its cache: prefill in steps, decode as a captured graph."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from r1v_export import contract
from r1v_export.contract import Sizes
from r1v_export.count import Count
from r1v_export.errors import UsageError
from r1v_export.targets.tensorrt.build.profiles import BATCH, LOGIT_POSITIONS, SEQ
from r1v_export.targets.tensorrt.device import copy
from r1v_export.targets.tensorrt.runtime.session import Run, Session

_INPUTS = (contract.INPUTS_EMBEDS, contract.POSITION_IDS, contract.CACHE_WRITE_INDEX, contract.LOGITS_INDEX)


class TensorRTDecoder:
    """A contract.Decoder on a plan.

    Past and present of each layer are one buffer on the device, [batch, kv_heads, slots, head_dim] with as many slots
    as the plan was built for, which TensorRT updates in place. Prompts longer than the plan takes at once go in pieces.
    One new token of each of the same rows always runs on the same memory, so that run is captured once and replayed.
    """

    def __init__(self, session: Session, sizes: Sizes, batch: int, capacity: int) -> None:
        self.session, self.batch, self.capacity, self.vocab = session, batch, capacity, sizes.vocab
        self._require_built_for(batch, capacity)
        self._bindings = {binding.name: binding for binding in session.info.bindings}
        self._pairs = contract.cache_pairs(sizes.layers)
        self._cache: dict[str, Tensor] = {}
        for past, present in self._pairs:
            self._cache[past] = self._cache[present] = session.empty(self._bindings[past], {BATCH: batch})
        self._one_token: dict[tuple[int, int], tuple[dict[str, Tensor], Callable[[], None]]] = {}

    def step(
        self,
        inputs_embeds: np.ndarray,
        position_ids: np.ndarray,
        cache_write_index: np.ndarray,
        cache_length: np.ndarray,
        logits_index: np.ndarray,
        first_row: int = 0,
    ) -> np.ndarray:
        (rows, seq), positions = inputs_embeds.shape[:2], logits_index.shape[1]
        if seq == positions == 1:
            return self._decode((first_row, rows), inputs_embeds, position_ids, cache_write_index, logits_index)
        piece = self.session.max[SEQ]
        logits_BPV = np.empty((rows, positions, self.vocab), dtype=np.float32)
        for start in range(0, seq, piece):
            part = slice(start, min(start + piece, seq))
            tokens = part.stop - start
            index_in_piece = np.clip(logits_index - start, 0, tokens - 1)
            here = (logits_index >= start) & (logits_index < part.stop)
            tensors = self._tensors(rows, tokens, positions)
            self._fill(
                tensors, inputs_embeds[:, part], position_ids[:, part], cache_write_index + start, index_in_piece
            )
            self._prepare(tensors, first_row, tokens)()
            logits_BPV[here] = self._logits(tensors)[here]
        return logits_BPV

    def copy_row(self, source: int, target: int, length: int) -> None:
        for tensor in self._cache_tensors():
            tensor[target, :, :length] = tensor[source, :, :length]
        self._finish_copies()

    def swap_rows(self, a: int, b: int, length: int) -> None:
        for tensor in self._cache_tensors():
            tensor[[a, b], :, :length] = tensor[[b, a], :, :length]
        self._finish_copies()

    def resize(self, batch: int, capacity: int, lengths: np.ndarray) -> None:
        self._require_built_for(batch, capacity)
        kept = min(batch, self.batch)
        self.batch, self.capacity = batch, capacity
        self._one_token.clear()
        for past, present in self._pairs:
            new = self.session.empty(self._bindings[past], {BATCH: batch})
            new[:kept] = self._cache[past][:kept]
            self._cache[past] = self._cache[present] = new
        self._finish_copies()

    def _decode(self, rows: tuple[int, int], *arrays: np.ndarray) -> np.ndarray:
        """One step of one token, for the first of some rows and how many they are."""
        if rows not in self._one_token:
            tensors = self._tensors(rows[1], 1, 1)
            self._fill(tensors, *arrays)
            run = self._prepare(tensors, rows[0], 1)
            run()  # TensorRT may allocate in its first run, which must not be captured; the step again changes nothing.
            self._one_token[rows] = tensors, self.session.accelerator.capture(run.enqueue)
        tensors, replay = self._one_token[rows]
        self._fill(tensors, *arrays)
        replay()
        self.session.accelerator.synchronize()
        return self._logits(tensors)

    def _tensors(self, rows: int, seq: int, positions: int) -> dict[str, Tensor]:
        """Inputs of a step and its logits; with the cache, all that the plan takes and gives."""
        sizes = {BATCH: rows, SEQ: seq, LOGIT_POSITIONS: positions}
        return {name: self.session.empty(self._bindings[name], sizes) for name in (*_INPUTS, contract.LOGITS)}

    @staticmethod
    def _logits(tensors: dict[str, Tensor]) -> np.ndarray:
        return tensors[contract.LOGITS].float().cpu().numpy()

    def _cache_tensors(self) -> Iterator[Tensor]:
        return (self._cache[past] for past, _ in self._pairs)

    def _finish_copies(self) -> None:
        """Wait for what was copied on the device by torch: plans run on a stream of their own."""
        if self.session.accelerator.device.type == "cuda":
            torch.cuda.current_stream(self.session.accelerator.device).synchronize()

    @staticmethod
    def _fill(tensors: dict[str, Tensor], *arrays: np.ndarray) -> None:
        for name, array in zip(_INPUTS, arrays, strict=True):
            copy(torch.from_numpy(np.ascontiguousarray(array)), tensors[name])

    def _prepare(self, tensors: dict[str, Tensor], first_row: int, seq: int) -> Run:
        rows, positions = tensors[contract.LOGITS].shape[:2]
        cache = {name: tensor[first_row : first_row + rows] for name, tensor in self._cache.items()}
        return self.session.prepare({**tensors, **cache}, {BATCH: rows, SEQ: seq, LOGIT_POSITIONS: positions})

    def _require_built_for(self, batch: int, capacity: int) -> None:
        past = next(binding for binding in self.session.info.inputs if binding.name == contract.past_key(0))
        slots, rows = past.shape[2], self.session.max[BATCH]
        assert isinstance(slots, int)
        if capacity > slots or batch > rows:
            raise UsageError(
                "The decoder engine is too small.",
                where=self.session.name,
                expected=f"at most {Count(rows, 'sequence')} of {Count(slots, 'token')}",
                found=f"{batch} of {capacity}",
                fix="ask for fewer tokens, or build with a larger `tensorrt: {capacity, max_batch}`",
            )
