"""The two sides of a comparison: an engine, with all that turns a question about images into its inputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from r1v_export.checkpoint.spec import ModelSpec
from r1v_export.checkpoint.tokenizer import Tokenizer
from r1v_export.contract import Engine
from r1v_export.parity.samples import ParitySample
from r1v_export.reference.preprocess import pixel_values
from r1v_export.reference.prompt import Template, Turn, encode, stop_ids


class Inputs(NamedTuple):
    """One sample as an engine is given it: pixel_values float32 [T, 3, H, W], and input_ids int64 [S]."""

    pixel_values: np.ndarray
    input_ids: np.ndarray


@dataclass(frozen=True)
class Endpoint:
    """The reference, with the checkpoint's own files, or the candidate, with those of its bundle.

    Each side has its own tokenizer, spec and template: a bundle that carries other files than its checkpoint shows at
    the boundaries `pixels` and `prompt`.
    """

    engine: Engine
    tokenizer: Tokenizer
    spec: ModelSpec
    template: Template
    generation_config: Mapping[str, Any] = field(default_factory=dict)
    """Of generation_config.json, for its stop tokens."""

    @property
    def stop_ids(self) -> frozenset[int]:
        return stop_ids(self.tokenizer, self.template, self.generation_config)

    def inputs(self, sample: ParitySample) -> Inputs:
        """Tile the images and encode the question as one user turn."""
        pixels_T3HW, tiles_per_image = pixel_values(sample.images, self.spec.tiling)
        turn = Turn("user", sample.question, images=len(sample.images))
        ids = encode(self.tokenizer, self.template, [turn], tiles_per_image, self.spec.tokens_per_tile)
        return Inputs(pixels_T3HW, np.array(ids, dtype=np.int64))
