"""An engine whose prompts another target's runtime computes: keys and values go into the engine's own cache.

Letters: B sequences, S new tokens, P of them with logits, E hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property

import numpy as np

from r1v_export.contract import CacheLimits, Decoder, Engine, OpenCacheDecoder, PromptEngine, VisionBlocks
from r1v_export.errors import CapabilityError

LEAST_TOKENS = 16
"""New tokens of a row from which on they go to what computes prompts. The last one is a step of the engine's own in any
case, for its logits; below this the two steps take longer than one."""


class PromptedEngine:
    """An engine that decodes, and leaves prompts to what computes them faster.

    Args:
        decoding: has the cache, in this process's memory, and computes everything else.
        open_prompts: opens what computes prompts, when the first decoder is opened; None where it turns out not to
            load, and the engine computes them.
        name: of both together.
    """

    def __init__(self, decoding: Engine, open_prompts: Callable[[], PromptEngine | None], name: str) -> None:
        self.decoding, self.sizes, self.name = decoding, decoding.sizes, name
        self._open_prompts = open_prompts

    @cached_property
    def prompts(self) -> PromptEngine | None:
        """What computes prompts."""
        return self._open_prompts()

    def vision(self, pixel_values: np.ndarray) -> np.ndarray:
        return self.decoding.vision(pixel_values)

    def vision_blocks(self, pixel_values: np.ndarray) -> Iterator[np.ndarray]:
        """Output of each ViT block in turn, [tiles, positions, vit_hidden], for parity.

        Raises:
            CapabilityError: the engine does not show its blocks.
        """
        if not isinstance(self.decoding, VisionBlocks):
            raise CapabilityError(
                "The engine does not show its ViT blocks.", where=self.name, fix="compare without blocks"
            )
        return self.decoding.vision_blocks(pixel_values)

    def projector(self, vision_features: np.ndarray) -> np.ndarray:
        return self.decoding.projector(vision_features)

    def embed(self, input_ids: np.ndarray, image_embeds: np.ndarray) -> np.ndarray:
        return self.decoding.embed(input_ids, image_embeds)

    def decoder(self, batch: int, capacity: int) -> Decoder:
        decoder, prompts = self.decoding.decoder(batch, capacity), self.prompts
        if prompts is None:
            return decoder
        assert isinstance(decoder, OpenCacheDecoder), "targets name what computes prompts for such decoders only"
        return PromptedDecoder(decoder, prompts)

    def cache_limits(self) -> CacheLimits:
        return self.decoding.cache_limits()


class PromptedDecoder:
    """A decoder whose tokens without logits, where a step brings many, are computed by another runtime.

    What it writes lies in the cache of the decoder, which computes the others behind it: those with logits, so that
    what computes prompts needs no head, and steps of few tokens. Padding is not computed.
    """

    least_fill = LEAST_TOKENS

    def __init__(self, decoder: OpenCacheDecoder, prompts: PromptEngine) -> None:
        self.decoding, self.prompts = decoder, prompts
        self.batch, self.capacity = decoder.batch, decoder.capacity

    def fill(self, inputs_embeds: np.ndarray, start: int, row: int) -> None:
        cache = [tensor_BKCD[row] for tensor_BKCD in self.decoding.cache_tensors()]
        self.prompts.fill(inputs_embeds, start, cache)

    def step(
        self,
        inputs_embeds: np.ndarray,
        position_ids: np.ndarray,
        cache_write_index: np.ndarray,
        cache_length: np.ndarray,
        logits_index: np.ndarray,
        first_row: int = 0,
    ) -> np.ndarray:
        before_B = logits_index.min(axis=1)
        if before_B.max() < LEAST_TOKENS:
            return self.decoding.step(
                inputs_embeds, position_ids, cache_write_index, cache_length, logits_index, first_row
            )
        logits = []
        for row, before in enumerate(map(int, before_B)):
            start, stop, here = int(cache_write_index[row]), int(logits_index[row].max()) + 1, slice(row, row + 1)
            count = before if before >= LEAST_TOKENS else 0
            if count:
                self.fill(inputs_embeds[row, :count], start, first_row + row)
            logits.append(
                self.decoding.step(
                    inputs_embeds[here, count:stop],
                    position_ids[here, count:stop],
                    cache_write_index[here] + count,
                    cache_write_index[here] + stop,
                    logits_index[here] - count,
                    first_row + row,
                )
            )
        return np.concatenate(logits)

    def copy_row(self, source: int, target: int, length: int) -> None:
        self.decoding.copy_row(source, target, length)

    def swap_rows(self, a: int, b: int, length: int) -> None:
        self.decoding.swap_rows(a, b, length)

    def resize(self, batch: int, capacity: int, lengths: np.ndarray) -> None:
        self.decoding.resize(batch, capacity, lengths)
        self.batch, self.capacity = batch, capacity
