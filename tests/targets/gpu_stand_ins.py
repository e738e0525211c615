"""Stand-ins for several GPUs, each with a vision engine."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from r1v_export.targets import vision


class CurrentGpu:
    """`torch.cuda.device` on a machine without one."""

    gpu: int | None = None

    def __init__(self, gpu: int) -> None:
        self.own = gpu

    def __enter__(self) -> None:
        CurrentGpu.gpu = self.own

    def __exit__(self, *_: object) -> None: ...


class StandInVision:
    def __init__(self, gpu: int) -> None:
        self.gpu, self.current, self.looked = gpu, CurrentGpu.gpu, 0

    def vision(self, pixel_values: np.ndarray) -> np.ndarray:
        self.looked += len(pixel_values)
        return pixel_values

    def projector(self, vision_features: np.ndarray) -> np.ndarray:
        return vision_features


def on_gpus(monkeypatch: pytest.MonkeyPatch) -> list[StandInVision]:
    """Engines that are opened on GPUs are stand-ins, in this list."""
    engines: list[StandInVision] = []
    monkeypatch.setattr(torch.cuda, "device", CurrentGpu)

    def open_(bundle: object, device: str, gpu: int, language_model: str) -> StandInVision:
        engines.append(StandInVision(gpu))
        return engines[-1]

    monkeypatch.setattr(vision, "_open", open_)
    return engines
