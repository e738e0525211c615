"""Keys and values of prompts, by a decoder graph without a head, for the cache of another target's decoder.

Letters: S new tokens, E hidden size, K key-value heads, P slots of the past, D head_dim.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from r1v_export import contract
from r1v_export.contract import Sizes
from r1v_export.targets.openvino.boundary import cache_pairs
from r1v_export.targets.openvino.library import ov
from r1v_export.targets.openvino.runtime.decoder import TOKENS_AT_ONCE
from r1v_export.targets.openvino.runtime.model import Compiled
from r1v_export.targets.openvino.runtime.run import naming


class OpenVinoPrompts:
    """A `contract.PromptEngine` on one request, for one thread at a time."""

    def __init__(self, compiled: Compiled, sizes: Sizes) -> None:
        self.sizes, self._compiled = sizes, compiled
        self._request = compiled.model.create_infer_request()
        self._pairs = cache_pairs(sizes.layers)
        self._outputs = [compiled.model.output(new) for _, new in self._pairs]
        self._taken = {port.any_name for port in compiled.model.inputs}

    def fill(self, inputs_embeds_SE: np.ndarray, start: int, cache_KCD: Sequence[np.ndarray]) -> None:
        for begin in range(0, len(inputs_embeds_SE), TOKENS_AT_ONCE):
            self._run(inputs_embeds_SE[begin : begin + TOKENS_AT_ONCE], start + begin, cache_KCD)

    def _run(self, inputs_embeds_SE: np.ndarray, start: int, cache_KCD: Sequence[np.ndarray]) -> None:
        seq = len(inputs_embeds_SE)
        inputs: dict[str, np.ndarray] = {
            contract.INPUTS_EMBEDS: np.ascontiguousarray(inputs_embeds_SE, np.float32)[None],
            contract.POSITION_IDS: np.arange(start, start + seq, dtype=np.int64)[None],
            contract.CACHE_WRITE_INDEX: np.array([start], dtype=np.int64),
        }
        for (past, _), content_KCD in zip(self._pairs, cache_KCD, strict=True):
            if past in self._taken:
                # The slots in use are copied, as they are not next to each other; of an empty cache, one that no token
                # sees.
                inputs[past] = np.ascontiguousarray(content_KCD[None, :, : max(1, start)])
        with self._compiled.weights.packing(), naming(contract.DECODER, inputs):
            # The last layer's attention is not computed, so that its past is not read, and nothing's of a single layer.
            tensors = {name: ov.Tensor(inputs[name], shared_memory=True) for name in inputs.keys() & self._taken}
            for name, tensor in tensors.items():
                self._request.set_tensor(name, tensor)
            self._request.infer()
            for output, content_KCD in zip(self._outputs, cache_KCD, strict=True):
                content_KCD[:, start : start + seq] = self._request.get_tensor(output).data[0]
