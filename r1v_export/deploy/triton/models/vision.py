"""`r1v_vision`: tiles become image embeddings. Triton batches the tiles of concurrent requests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from r1v_export.contract import IMAGE_EMBEDS, PIXEL_VALUES
from r1v_export.deploy.triton.models import python_backend as triton
from r1v_export.errors import InputError
from r1v_export.runner.finite import require_finite
from r1v_export.runner.open_runner import open_vision
from r1v_export.targets.images import AUTO


class TritonPythonModel:
    """Runs the vision and projector graphs over the tiles of a batch."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Open the bundle's engine; a graph is loaded when it is first needed, which is here."""
        model = triton.ModelArguments(args)
        vision_target = model.parameters.get(triton.VISION_TARGET, AUTO)
        self.engine, pipeline, said = open_vision(model.bundle, model.target, model.device, model.engine, vision_target)
        triton.log(said)
        tile = pipeline.tiling.tile_size
        self._encode(np.zeros((1, 3, tile, tile), np.float32))

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Encode the tiles of all requests together."""
        tiles = [triton.array_input(request, PIXEL_VALUES) for request in requests]
        try:
            # Together, one request's NaN would be every request's error.
            finite = [pixels is not None and bool(np.isfinite(pixels).all()) for pixels in tiles]
            sound = [pixels for pixels, holds in zip(tiles, finite, strict=True) if holds and pixels is not None]
            encoded = iter(self._split(sound))
            return [
                triton.response(**{IMAGE_EMBEDS: next(encoded)}) if holds else triton.error_response(_NOT_FINITE)
                for holds in finite
            ]
        except Exception as error:
            return [triton.error_response(error) for _ in requests]

    def _split(self, tiles: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Embeddings of each request's tiles."""
        if not tiles:
            return []
        embeds_TNE = self._encode(np.concatenate(tiles))
        ends = np.cumsum([0, *map(len, tiles)])
        return [embeds_TNE[start:end] for start, end in pairwise(ends)]

    def _encode(self, pixels_T3SS: np.ndarray) -> np.ndarray:
        embeds_TNE = self.engine.projector(self.engine.vision(pixels_T3SS))
        require_finite(embeds_TNE, "projector")
        return np.ascontiguousarray(embeds_TNE, dtype=np.float32)


_NOT_FINITE = InputError("The tiles hold numbers that are not finite.", where=PIXEL_VALUES, expected="finite numbers")
