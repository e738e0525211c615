from __future__ import annotations

import threading

import numpy as np
import pytest
import torch

from r1v_export.targets.tile_parallel import OnGpu, TileParallelVision, tile_shares


class Double:
    """Knows the features that it made, as an engine with the projector in its plan."""

    def __init__(self) -> None:
        self.made: np.ndarray | None = None
        self.known = False

    def vision(self, pixel_values: np.ndarray) -> np.ndarray:
        assert pixel_values.flags.c_contiguous
        self.made = 2 * pixel_values
        return self.made

    def projector(self, vision_features: np.ndarray) -> np.ndarray:
        self.known = vision_features is self.made
        return vision_features + 1


@pytest.mark.parametrize(("tiles", "gpus"), [(13, 1), (13, 2), (13, 4), (13, 8), (3, 8), (1, 2)])
def test_every_tile_is_encoded_once_and_gpus_by_turns(tiles, gpus):
    shares = tile_shares(tiles, gpus)
    sizes = [share.stop - share.start for share in shares]

    assert [tile for share in shares for tile in range(tiles)[share]] == list(range(tiles))
    assert len(shares) == gpus
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("tiles", [0, 1, 5])
def test_several_gpus_give_what_one_gives(tiles):
    pixels = np.arange(tiles * 6, dtype=np.float32).reshape(tiles, 6)

    assert np.array_equal(TileParallelVision([Double() for _ in range(4)]).vision(pixels), 2 * pixels)
    assert np.array_equal(TileParallelVision([Double() for _ in range(3)]).projector(pixels), pixels + 1)


def test_each_engine_is_handed_its_own_features_back():
    engines = [Double() for _ in range(3)]
    vision, pixels = TileParallelVision(engines), np.ones((5, 6), dtype=np.float32)

    features = vision.vision(pixels)

    assert np.array_equal(vision.projector(features), features + 1)
    assert [engine.known for engine in engines] == [True] * 3
    assert np.array_equal(vision.projector(features.copy()), features + 1)
    assert [engine.known for engine in engines] == [False] * 3


def test_an_engine_is_called_with_its_gpu_current_in_the_thread_that_calls(monkeypatch):
    current = threading.local()

    class Current:
        def __init__(self, gpu: int) -> None:
            self.gpu = gpu

        def __enter__(self) -> None:
            current.gpu = self.gpu

        def __exit__(self, *_: object) -> None:
            del current.gpu

    class Tells:
        def vision(self, pixel_values: np.ndarray) -> np.ndarray:
            return np.full(len(pixel_values), current.gpu)

        projector = vision

    monkeypatch.setattr(torch.cuda, "device", Current)
    vision = TileParallelVision([OnGpu(Tells(), gpu) for gpu in range(3)])

    assert vision.vision(np.zeros((5, 2))).tolist() == [0, 0, 1, 1, 2]
    assert vision.projector(np.zeros((5, 2))).tolist() == [0, 0, 1, 1, 2]
