"""What encodes a bundle's images next to a language model that a library runs: the vision engine of any target."""

from __future__ import annotations

import logging

import numpy as np
import torch

from r1v_export.bundle import ENGINES, Bundle
from r1v_export.config import Device
from r1v_export.contract import VisionEngine
from r1v_export.errors import BundleError, CapabilityError, EngineMismatchError
from r1v_export.log_event import log_event
from r1v_export.targets import registry
from r1v_export.targets.onnxruntime.target import OnnxRuntimeTarget, check_device
from r1v_export.targets.tensorrt.library import TENSORRT, TENSORRT_RTX
from r1v_export.targets.tile_parallel import OnGpu, TileParallelVision

_LOG = logging.getLogger(__name__)

PLANS = (TENSORRT, TENSORRT_RTX)
"""Targets whose plans encode images; preferred to ONNX Runtime."""
ONNXRUNTIME = OnnxRuntimeTarget.name


def open_vision(
    bundle: Bundle, device: Device, gpus: int, tiles_per_gpu: int, language_model: str
) -> tuple[VisionEngine, int]:
    """What encodes a bundle's images, and how many tiles at once: a plan that runs here, else ONNX Runtime on the
    graphs that it has; on as many GPUs as the language model takes, and then loaded whole when this returns.

    Args:
        tiles_per_gpu: tiles that a GPU (or the CPU) encodes at once.
        language_model: the language model's target, for the error.

    Raises:
        BundleError: the bundle has nothing that encodes images, or a damaged plan.
        CapabilityError: ONNX Runtime is needed and not here, or has no such device.
    """
    if device == "cpu":
        return _open(bundle, device, 0, language_model), tiles_per_gpu
    engines: list[VisionEngine] = []
    for gpu in range(gpus):
        with torch.cuda.device(gpu):
            engines.append(OnGpu(_open(bundle, device, gpu, language_model), gpu))
    vision = TileParallelVision(engines) if gpus > 1 else engines[0]
    tiles, side = gpus * tiles_per_gpu, bundle.spec.tiling.tile_size
    vision.projector(vision.vision(np.zeros((tiles, 3, side, side), dtype=np.float32)))
    return vision, tiles


def _open(bundle: Bundle, device: Device, gpu: int, language_model: str) -> VisionEngine:
    for name in PLANS:
        if name in bundle.targets:
            try:
                return registry.open_engine(bundle.folder, name, bundle.spec, device)
            except (CapabilityError, EngineMismatchError) as error:
                # What comes next computes the same.
                message = "the plan of %(target)s does not run here, so another engine encodes images: %(reason)s"
                log_event(_LOG, logging.WARNING, message, target=name, reason=str(error))
    lowered = bundle.folder.resolve() / ENGINES / ONNXRUNTIME
    folder, weights = (lowered, lowered.parents[1]) if ONNXRUNTIME in bundle.targets else (bundle.graphs, bundle.graphs)
    if not folder.is_dir():
        raise BundleError(
            "The bundle has nothing that encodes images for the language model.",
            where=bundle.folder,
            expected=f"an engine of {', '.join(PLANS)} or {ONNXRUNTIME}, or graphs",
            found=", ".join(bundle.targets),
            fix=f"build both: --target {language_model} --target {ONNXRUNTIME}",
        )
    check_device(device)
    from r1v_export.targets.onnxruntime.runtime.engine import OnnxRuntimeEngine

    return OnnxRuntimeEngine(folder, weights, bundle.spec.sizes, device, gpu=gpu)
