"""Engines of one bundle as one: images are encoded, or the language model is decoded, by another one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property

import numpy as np

from r1v_export.contract import (
    BeginsDecoder,
    CacheLimits,
    Decoder,
    DecoderEngine,
    DecodesOneSequence,
    Engine,
    VisionBlocks,
    VisionEngine,
)
from r1v_export.errors import CapabilityError


class PairedEngine:
    """An engine some of whose work others do, for machines on which they are faster.

    Args:
        engine: embeds tokens, and does what no other one is there for.
        name: of all together.
        open_images: opens what encodes images: `vision` and `projector`. Called when the first image is encoded, so
            that questions without one neither wait for it nor hold it in memory. None for the engine itself.
        open_decoder: opens what decodes, at the first prompt, or in the caller's thread when a server begins it. What
            the engine would decode with is never opened then.
    """

    def __init__(
        self,
        engine: Engine,
        name: str,
        open_images: Callable[[], VisionEngine] | None = None,
        open_decoder: Callable[[], DecoderEngine] | None = None,
    ) -> None:
        self.engine, self.sizes, self.name = engine, engine.sizes, name
        self._open_images, self._open_decoder = open_images, open_decoder

    @cached_property
    def images(self) -> VisionEngine:
        """What encodes images."""
        return self._open_images() if self._open_images else self.engine

    @cached_property
    def decoding(self) -> DecoderEngine:
        """What decodes."""
        return self._open_decoder() if self._open_decoder else self.engine

    def vision(self, pixel_values: np.ndarray) -> np.ndarray:
        return self.images.vision(pixel_values)

    def vision_blocks(self, pixel_values: np.ndarray) -> Iterator[np.ndarray]:
        """Output of each ViT block in turn, [tiles, positions, vit_hidden], for parity.

        Raises:
            CapabilityError: what encodes images does not show its blocks.
        """
        if not isinstance(self.images, VisionBlocks):
            raise CapabilityError(
                "What encodes images does not show its ViT blocks.", where=self.name, fix="compare without blocks"
            )
        return self.images.vision_blocks(pixel_values)

    def projector(self, vision_features: np.ndarray) -> np.ndarray:
        return self.images.projector(vision_features)

    def embed(self, input_ids: np.ndarray, image_embeds: np.ndarray) -> np.ndarray:
        return self.engine.embed(input_ids, image_embeds)

    def begin_decoder(self, alone: bool) -> None:
        """Begin to open what decodes, where it can: what the engine would decode with is not opened for another one.

        Another one is begun by servers alone: a program may fork after it opened a bundle, and a library such as
        OpenVINO, once in use, does not work in the forked process.
        """
        if (self._open_decoder is None or not alone) and isinstance(self.decoding, BeginsDecoder):
            self.decoding.begin_decoder(alone)

    def decoder(self, batch: int, capacity: int) -> Decoder:
        return self.decoding.decoder(batch, capacity)

    def one_sequence_decoder(self, capacity: int) -> Decoder:
        if isinstance(self.decoding, DecodesOneSequence):
            return self.decoding.one_sequence_decoder(capacity)
        return self.decoding.decoder(1, capacity)

    def cache_limits(self) -> CacheLimits:
        return self.decoding.cache_limits()
