"""What encodes a bundle's images next to a language model: a plan where one runs, else ONNX Runtime; on every GPU."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from r1v_export.bundle import Bundle
from r1v_export.config import BuildConfig, Device, ParityConfig
from r1v_export.contract import VisionEngine
from r1v_export.errors import BundleError, CapabilityError, EngineMismatchError
from r1v_export.pipeline.build import build
from r1v_export.targets import vision as vision_of_bundle
from r1v_export.targets.onnxruntime.runtime.engine import OnnxRuntimeEngine
from r1v_export.targets.tile_parallel import OnGpu, TileParallelVision
from tests.targets.gpu_stand_ins import CurrentGpu, on_gpus


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With the standard graphs and nothing else that encodes images."""
    config = BuildConfig(parity=ParityConfig(enabled=False), targets={"tensorrt-llm": {}})
    return build(config, tmp_path_factory.mktemp("vision") / "bundle").out


@pytest.fixture(scope="module")
def lowered(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With ONNX Runtime's own graphs."""
    config = BuildConfig(parity=ParityConfig(enabled=False))
    return build(config, tmp_path_factory.mktemp("vision") / "lowered").out


def opened(bundle: Bundle, device: Device, gpus: int) -> tuple[VisionEngine, int]:
    return vision_of_bundle.open_vision(bundle, device, gpus, tiles_per_gpu=4, language_model="hf-unified")


def test_the_standard_graphs_look_where_the_bundle_has_nothing_better(bundle):
    vision, tiles = opened(Bundle.open(bundle), "cpu", 4)

    assert isinstance(vision, OnnxRuntimeEngine)
    assert (vision.folder, tiles) == (bundle / "graphs", 4)


def test_the_lowered_graphs_look_where_the_bundle_has_them(lowered):
    vision, _ = opened(Bundle.open(lowered), "cpu", 1)

    assert isinstance(vision, OnnxRuntimeEngine)
    assert vision.folder == lowered / "engines" / "onnxruntime"
    side = Bundle.open(lowered).spec.tiling.tile_size
    assert np.isfinite(vision.projector(vision.vision(np.zeros((1, 3, side, side), dtype=np.float32)))).all()


def test_a_plan_is_preferred_where_it_runs(bundle, monkeypatch):
    tried = with_plans(monkeypatch, {"tensorrt": CapabilityError("no tensorrt"), "tensorrt-rtx": "plan"})

    assert opened(Bundle.open(bundle), "cpu", 1)[0] == "plan"
    assert tried == [
        ("tensorrt", bundle / "engines" / "tensorrt"),
        ("tensorrt-rtx", bundle / "engines" / "tensorrt-rtx"),
    ]


def test_plans_that_do_not_run_here_are_passed_over_with_a_warning_each(bundle, monkeypatch, caplog):
    errors = {"tensorrt": CapabilityError("no library"), "tensorrt-rtx": EngineMismatchError("another GPU")}
    with_plans(monkeypatch, errors)

    with caplog.at_level(logging.WARNING, "r1v_export"):
        assert isinstance(opened(Bundle.open(bundle), "cpu", 1)[0], OnnxRuntimeEngine)
    warnings = [(record.target, record.reason) for record in caplog.records]
    assert warnings == [("tensorrt", "no library"), ("tensorrt-rtx", "another GPU")]


def test_a_damaged_plan_is_an_error_and_no_reason_for_another_engine(bundle, monkeypatch):
    with_plans(monkeypatch, {"tensorrt": BundleError("cut short"), "tensorrt-rtx": "plan"})

    with pytest.raises(BundleError, match="cut short"):
        opened(Bundle.open(bundle), "cpu", 1)


def test_a_bundle_that_cannot_encode_images_says_what_to_build(bundle, tmp_path):
    blind = Path(shutil.copytree(bundle, tmp_path / "bundle"))
    shutil.rmtree(blind / "graphs")

    with pytest.raises(BundleError, match="--target hf-unified --target onnxruntime"):
        opened(Bundle.open(blind), "cpu", 1)


def test_onnxruntime_without_cuda_is_reported(bundle, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device", CurrentGpu)

    with pytest.raises(CapabilityError, match="cannot use a CUDA GPU"):
        opened(Bundle.open(bundle), "cuda", 1)


def test_every_gpu_gets_an_engine_of_its_own_and_is_loaded_at_once(bundle, monkeypatch):
    engines = on_gpus(monkeypatch)

    vision, tiles = opened(Bundle.open(bundle), "cuda", 3)

    assert isinstance(vision, TileParallelVision)
    assert all(isinstance(engine, OnGpu) for engine in vision.engines)
    assert tiles == 12
    assert [(engine.gpu, engine.current, engine.looked) for engine in engines] == [(0, 0, 4), (1, 1, 4), (2, 2, 4)]


def with_plans(monkeypatch: pytest.MonkeyPatch, plans: dict[str, Any]) -> list[tuple[str, Path]]:
    """A bundle has plans, and opening one gives this or raises it; what was opened."""
    opened: list[tuple[str, Path]] = []

    class Target:
        def __init__(self, name: str) -> None:
            self.name = name

        def open(self, folder: Path, *_: object) -> Any:
            opened.append((self.name, folder))
            if isinstance(plans[self.name], Exception):
                raise plans[self.name]
            return plans[self.name]

    monkeypatch.setattr(Bundle, "targets", property(lambda self: tuple(plans)))
    monkeypatch.setattr(vision_of_bundle.registry, "get_target", Target)
    return opened
