"""The vision tower on the GPUs that a language model is spread over: each looks at a share of the tiles.

The tower is copied, not cut: its 25 heads cannot be shared by 2, 4 or 8 GPUs, and tiles do not know of each other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Protocol

import numpy as np


class VisionEngine(Protocol):
    """The part of `contract.Engine` that looks at pictures."""

    def vision(self, pixel_values: np.ndarray) -> np.ndarray: ...

    def projector(self, vision_features: np.ndarray) -> np.ndarray: ...


def tile_shares(tiles: int, gpus: int) -> list[slice]:
    """Which tiles each GPU takes: neighbours, as equal in number as can be; none for GPUs that are too many."""
    size, more = divmod(tiles, gpus)
    starts = [gpu * size + min(gpu, more) for gpu in range(gpus + 1)]
    return [slice(start, stop) for start, stop in pairwise(starts)]


class TileParallelVision:
    """Several vision engines, one for each GPU, as one.

    Args:
        engines: of the same model.
    """

    def __init__(self, engines: Sequence[VisionEngine]) -> None:
        self.engines = engines

    def vision(self, pixel_values: np.ndarray) -> np.ndarray:
        return self._spread(pixel_values, [engine.vision for engine in self.engines])

    def projector(self, vision_features: np.ndarray) -> np.ndarray:
        return self._spread(vision_features, [engine.projector for engine in self.engines])

    def _spread(self, tiles: np.ndarray, calls: Sequence[Callable[[np.ndarray], np.ndarray]]) -> np.ndarray:
        if not len(tiles):
            return calls[0](tiles)
        pairs = zip(calls, tile_shares(len(tiles), len(calls)), strict=True)
        work = [(call, np.ascontiguousarray(tiles[share])) for call, share in pairs if share.start < share.stop]
        with ThreadPoolExecutor(len(work)) as pool:
            return np.concatenate(list(pool.map(lambda pair: pair[0](pair[1]), work)))
