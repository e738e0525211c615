"""Two engines of one bundle as one: images are encoded by one of them, and the language model is the other's."""

from __future__ import annotations

import numpy as np

from r1v_export.contract import CacheLimits, Decoder, Engine, VisionEngine


class PairedEngine:
    """An engine whose images another one encodes, for machines on which that is the faster one.

    Args:
        decoding: embeds tokens and decodes.
        vision: encodes images: `vision` and `projector`.
        vision_target: its name.
    """

    def __init__(self, decoding: Engine, vision: VisionEngine, vision_target: str) -> None:
        self.decoding, self.images, self.sizes = decoding, vision, decoding.sizes
        self.name = f"{decoding.name} with images by {vision_target}"

    def vision(self, pixel_values: np.ndarray) -> np.ndarray:
        return self.images.vision(pixel_values)

    def projector(self, vision_features: np.ndarray) -> np.ndarray:
        return self.images.projector(vision_features)

    def embed(self, input_ids: np.ndarray, image_embeds: np.ndarray) -> np.ndarray:
        return self.decoding.embed(input_ids, image_embeds)

    def decoder(self, batch: int, capacity: int) -> Decoder:
        return self.decoding.decoder(batch, capacity)

    def cache_limits(self) -> CacheLimits:
        return self.decoding.cache_limits()
