"""The vision tower on the GPUs that a language model is spread over: each encodes a share of the tiles.

The tower is copied, not cut: its 25 heads cannot be shared by 2, 4 or 8 GPUs, and tiles do not know of each other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import torch

from r1v_export.contract import VisionEngine


def tile_shares(tiles: int, gpus: int) -> list[slice]:
    """Which tiles each GPU takes: neighbors, as equal in number as can be; none for GPUs that are too many."""
    size, more = divmod(tiles, gpus)
    starts = [gpu * size + min(gpu, more) for gpu in range(gpus + 1)]
    return [slice(start, stop) for start, stop in pairwise(starts)]


class OnGpu:
    """A vision engine that was opened with one GPU current and needs it current in whatever thread calls it: plans are
    loaded and run there."""

    def __init__(self, engine: VisionEngine, gpu: int) -> None:
        self.engine, self.gpu = engine, gpu

    def vision(self, pixel_values: np.ndarray) -> np.ndarray:
        with torch.cuda.device(self.gpu):
            return self.engine.vision(pixel_values)

    def projector(self, vision_features: np.ndarray) -> np.ndarray:
        with torch.cuda.device(self.gpu):
            return self.engine.projector(vision_features)


class TileParallelVision:
    """Several vision engines, one for each GPU, as one.

    Args:
        engines: of the same model. Each is only ever called by one thread at a time.
    """

    def __init__(self, engines: Sequence[VisionEngine]) -> None:
        self.engines = engines
        self._last: tuple[np.ndarray, list[np.ndarray]] = (np.empty(0), [])

    def vision(self, pixel_values: np.ndarray) -> np.ndarray:
        shares = self._shares(pixel_values)
        parts = self._spread([engine.vision for engine in self.engines], shares)
        features = np.concatenate(parts)
        self._last = features, parts
        return features

    def projector(self, vision_features: np.ndarray) -> np.ndarray:
        # An engine with both in one plan recognizes its own features and returns the stored result.
        features, parts = self._last
        shares = parts if features is vision_features else self._shares(vision_features)
        return np.concatenate(self._spread([engine.projector for engine in self.engines], shares))

    def _shares(self, tiles: np.ndarray) -> list[np.ndarray]:
        """Each GPU's tiles; at least one share, which is empty where there are no tiles."""
        shares = [np.ascontiguousarray(tiles[share]) for share in tile_shares(len(tiles), len(self.engines))]
        return [share for share in shares if len(share)] or shares[:1]

    @staticmethod
    def _spread(calls: Sequence[Callable[[np.ndarray], np.ndarray]], shares: Sequence[np.ndarray]) -> list[np.ndarray]:
        with ThreadPoolExecutor(len(shares)) as pool:
            return list(pool.map(lambda call, share: call(share), calls, shares))
