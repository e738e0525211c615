"""Two engines of one bundle as one: images are encoded by one of them, and the language model is the other's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property

import numpy as np

from r1v_export.contract import CacheLimits, Decoder, Engine, VisionBlocks, VisionEngine
from r1v_export.errors import CapabilityError


class PairedEngine:
    """An engine whose images another one encodes, for machines on which that is the faster one.

    Args:
        decoding: embeds tokens and decodes.
        open_images: opens what encodes images: `vision` and `projector`. Called when the first image is encoded, so
            that questions without one neither wait for it nor hold it in memory.
        name: of the pair.
    """

    def __init__(self, decoding: Engine, open_images: Callable[[], VisionEngine], name: str) -> None:
        self.decoding, self.sizes, self.name = decoding, decoding.sizes, name
        self._open_images = open_images

    @cached_property
    def images(self) -> VisionEngine:
        """What encodes images."""
        return self._open_images()

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
        return self.decoding.embed(input_ids, image_embeds)

    def decoder(self, batch: int, capacity: int) -> Decoder:
        return self.decoding.decoder(batch, capacity)

    def cache_limits(self) -> CacheLimits:
        return self.decoding.cache_limits()
