"""The decoder plan with its cache: prefill in steps, decode as a captured graph."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from r1v_export import contract
from r1v_export.contract import Sizes
from r1v_export.errors import UsageError
from r1v_export.targets.tensorrt.build.profiles import BATCH, LOGIT_POSITIONS, SEQ
from r1v_export.targets.tensorrt.device import copy
from r1v_export.targets.tensorrt.runtime.session import Run, Session

_INPUTS = (contract.INPUTS_EMBEDS, contract.POSITION_IDS, contract.CACHE_WRITE_INDEX, contract.LOGITS_INDEX)


class TensorRTDecoder:
    """A contract.Decoder on a plan.

    Past and present of each layer are one buffer on the device, [batch, kv_heads, slots, head_dim] with as many slots
    as the plan was built for, which TensorRT updates in place. Prompts longer than the plan takes at once go in pieces.
    One new token of each row always runs on the same memory, so that run is captured once and replayed.
    """

    def __init__(self, session: Session, sizes: Sizes, batch: int, capacity: int) -> None:
        self.session, self.batch, self.capacity, self.vocab = session, batch, capacity, sizes.vocab
        self._require_built_for(batch, capacity)
        self._bindings = {binding.name: binding for binding in session.info.bindings}
        pairs = contract.cache_pairs(sizes.layers)
        self._cache: dict[str, Tensor] = {}
        for past, present in pairs:
            self._cache[past] = self._cache[present] = session.empty(self._bindings[past], {BATCH: batch})
        self._one_token: tuple[dict[str, Tensor], Callable[[], None]] | None = None

    def step(
        self,
        inputs_embeds: np.ndarray,
        position_ids: np.ndarray,
        cache_write_index: np.ndarray,
        cache_length: np.ndarray,
        logits_index: np.ndarray,
    ) -> np.ndarray:
        seq, positions = inputs_embeds.shape[1], logits_index.shape[1]
        if seq == positions == 1:
            return self._decode(inputs_embeds, position_ids, cache_write_index, logits_index)
        piece = self.session.max[SEQ]
        logits_BPV = np.empty((self.batch, positions, self.vocab), dtype=np.float32)
        for start in range(0, seq, piece):
            part = slice(start, min(start + piece, seq))
            tokens = part.stop - start
            index_in_piece = np.clip(logits_index - start, 0, tokens - 1)
            here = (logits_index >= start) & (logits_index < part.stop)
            tensors = self._tensors(tokens, positions)
            self._fill(
                tensors, inputs_embeds[:, part], position_ids[:, part], cache_write_index + start, index_in_piece
            )
            self._prepare(tensors, tokens, positions)()
            logits_BPV[here] = self._logits(tensors)[here]
        return logits_BPV

    def _decode(self, *arrays: np.ndarray) -> np.ndarray:
        if self._one_token is None:
            tensors = self._tensors(1, 1)
            self._fill(tensors, *arrays)
            run = self._prepare(tensors, 1, 1)
            run()  # TensorRT may allocate in its first run, which must not be captured; the step again changes nothing.
            self._one_token = tensors, self.session.accelerator.capture(run.enqueue)
        tensors, replay = self._one_token
        self._fill(tensors, *arrays)
        replay()
        self.session.accelerator.synchronize()
        return self._logits(tensors)

    def _tensors(self, seq: int, positions: int) -> dict[str, Tensor]:
        """Inputs of a step and its logits; with the cache, all that the plan takes and gives."""
        sizes = self._step_sizes(seq, positions)
        return {name: self.session.empty(self._bindings[name], sizes) for name in (*_INPUTS, contract.LOGITS)}

    @staticmethod
    def _fill(tensors: dict[str, Tensor], *arrays: np.ndarray) -> None:
        for name, array in zip(_INPUTS, arrays, strict=True):
            copy(torch.from_numpy(np.ascontiguousarray(array)), tensors[name])

    @staticmethod
    def _logits(tensors: dict[str, Tensor]) -> np.ndarray:
        return tensors[contract.LOGITS].float().cpu().numpy()

    def _prepare(self, tensors: dict[str, Tensor], seq: int, positions: int) -> Run:
        return self.session.prepare({**tensors, **self._cache}, self._step_sizes(seq, positions))

    def _step_sizes(self, seq: int, positions: int) -> dict[str, int]:
        return {BATCH: self.batch, SEQ: seq, LOGIT_POSITIONS: positions}

    def _require_built_for(self, batch: int, capacity: int) -> None:
        past = next(binding for binding in self.session.info.inputs if binding.name == contract.past_key(0))
        slots, rows = past.shape[2], self.session.max[BATCH]
        assert isinstance(slots, int)
        if capacity > slots or batch > rows:
            raise UsageError(
                "The decoder engine is too small.",
                where=self.session.name,
                expected=f"at most {rows} sequences of {slots} tokens",
                found=f"{batch} of {capacity}",
                fix="ask for fewer tokens, or build with a larger `tensorrt: {capacity, max_batch}`",
            )
