"""A bundle's language model in TensorRT-LLM's hands, and whatever of the bundle looks at images beside it."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from r1v_export.bundle import ENGINES, Bundle
from r1v_export.config import Device
from r1v_export.contract import VisionEngine
from r1v_export.errors import BundleError, CapabilityError, UsageError
from r1v_export.generation import Generator
from r1v_export.runner.base import TILES_PER_RUN
from r1v_export.targets import registry
from r1v_export.targets.tensorrt.library import TENSORRT, TENSORRT_RTX
from r1v_export.targets.tensorrt_llm.build.engine_plan import TARGET, plan_engine, require_built
from r1v_export.targets.tensorrt_llm.runtime.executor import ExecutorSession, open_executor, require_executor
from r1v_export.targets.tensorrt_llm.runtime.llm_api import LlmApiSession, open_llm, require_llm_api
from r1v_export.targets.tile_parallel import OnGpu, TileParallelVision

LLM_API = "llm-api"
"""What is asked for in the place of an engine's folder where the LLM API is to load a unified checkpoint."""

LLM_API_TARGET = "hf-unified"
PLANS = (TENSORRT, TENSORRT_RTX)
"""Targets whose plans look at images; preferred to ONNX Runtime."""
ONNXRUNTIME = "onnxruntime"


class Deployment(NamedTuple):
    """What a `GeneratorRunner` is made of."""

    generator: Generator
    vision: VisionEngine
    tiles_per_run: int


def open_deployment(bundle: Bundle, target: str | None, engine: str, device: Device) -> Deployment:
    """
    Args:
        target: that the bundle is asked for; None where `engine` says it all.
        engine: a folder of `r1v-export engine`, or `LLM_API`.
        device: where images are looked at.

    Raises:
        UsageError: engine and target do not go together.
        BundleError: the bundle has no such checkpoint, or the engine is another one's.
        CapabilityError: TensorRT-LLM, a GPU, or what looks at images is missing.
    """
    needed = LLM_API_TARGET if engine == LLM_API else TARGET
    if target not in (None, needed):
        raise UsageError(
            "This target and this engine do not go together.",
            where=f"--target {target} --engine {engine}",
            expected=f"a folder of `r1v-export engine` for {TARGET}, {LLM_API} for {LLM_API_TARGET}",
        )
    checkpoint = bundle.folder / ENGINES / bundle.target(needed)
    return _llm_api(bundle, checkpoint, device) if engine == LLM_API else _executor(bundle, Path(engine), device)


def _executor(bundle: Bundle, engine: Path, device: Device) -> Deployment:
    plan = plan_engine(bundle.folder, engine)
    require_built(plan)
    require_executor(plan.config)
    # Before the executor, which takes most of the memory that is left.
    vision, tiles = open_vision(bundle, device, plan.ranks)
    executor, bindings = open_executor(engine, plan.config)
    session = ExecutorSession(executor, bindings, plan.config, plan.sizes, bundle.spec.image_token_id)
    return Deployment(session, vision, tiles)


def _llm_api(bundle: Bundle, checkpoint: Path, device: Device) -> Deployment:
    spec, tp = bundle.spec, bundle.config.tensorrt_llm.tp
    require_llm_api(tp)
    vision, tiles = open_vision(bundle, device, tp)
    llm, library = open_llm(checkpoint, spec.architecture, tp)
    positions = spec.language.max_position_embeddings
    return Deployment(LlmApiSession(llm, library, getattr(torch, spec.dtype), positions), vision, tiles)


def open_vision(bundle: Bundle, device: Device, gpus: int) -> tuple[VisionEngine, int]:
    """What looks at a bundle's images, and how many tiles at once: a plan that runs here, else ONNX Runtime on the
    graphs that it has; on as many GPUs as the language model takes, and then loaded whole when this returns.

    Raises:
        BundleError: the bundle has nothing that looks at images.
        CapabilityError: ONNX Runtime is needed and not here, or has no such device.
    """
    if device == "cpu":
        return _open(bundle, device, 0), TILES_PER_RUN
    engines: list[VisionEngine] = []
    for gpu in range(gpus):
        with torch.cuda.device(gpu):
            engines.append(OnGpu(_open(bundle, device, gpu), gpu))
    vision = TileParallelVision(engines) if gpus > 1 else engines[0]
    tiles, side = gpus * TILES_PER_RUN, bundle.spec.tiling.tile_size
    vision.projector(vision.vision(np.zeros((tiles, 3, side, side), dtype=np.float32)))
    return vision, tiles


def _open(bundle: Bundle, device: Device, gpu: int) -> VisionEngine:
    for name in PLANS:
        if name in bundle.targets:
            try:
                return registry.get_target(name).open(bundle.folder / ENGINES / name, bundle.spec, device)
            except (CapabilityError, BundleError):
                continue  # Of another library, version or GPU: what comes next computes the same.
    lowered = bundle.folder.resolve() / ENGINES / ONNXRUNTIME
    folder, weights = (lowered, lowered.parents[1]) if ONNXRUNTIME in bundle.targets else (bundle.graphs, bundle.graphs)
    if not folder.is_dir():
        raise BundleError(
            "The bundle has nothing that looks at images beside the language model.",
            where=bundle.folder,
            expected=f"an engine of {', '.join(PLANS)} or {ONNXRUNTIME}, or graphs",
            found=", ".join(bundle.targets),
            fix=f"build both: --target {LLM_API_TARGET} --target {ONNXRUNTIME}",
        )
    try:
        from r1v_export.targets.onnxruntime.runtime.engine import OnnxRuntimeEngine
        from r1v_export.targets.onnxruntime.runtime.session import check_device
    except ModuleNotFoundError as error:
        raise CapabilityError(
            "ONNX Runtime looks at images here, and is not installed.",
            expected=error.name,
            fix=f"pip install 'r1v-export[{ONNXRUNTIME}]'",
        ) from error
    check_device(device)
    return OnnxRuntimeEngine(folder, weights, bundle.spec.sizes, device, gpu=gpu)
