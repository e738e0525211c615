"""A bundle's language model in TensorRT-LLM's hands, and what encodes the bundle's images next to it."""

from __future__ import annotations

from pathlib import Path

import torch

from r1v_export.bundle import Bundle
from r1v_export.config import Device
from r1v_export.targets.interface import Deployment
from r1v_export.targets.tensorrt_llm.build.engine_plan import TARGET, plan_engine, require_built
from r1v_export.targets.tensorrt_llm.runtime.executor import ExecutorSession, open_executor, require_executor
from r1v_export.targets.tensorrt_llm.runtime.llm_api import LlmApiSession, open_llm, require_llm_api
from r1v_export.targets.vision import open_vision

LLM_API = "llm-api"
"""What `--engine` is given, in the place of an engine's folder, for the LLM API to load a Hugging Face checkpoint."""


def open_deployment(bundle: Bundle, engine: Path, device: Device, tiles_per_gpu: int) -> Deployment:
    """The executor on an engine of `r1v-export engine`.

    Args:
        engine: the engine's folder.
        device: where images are encoded.
        tiles_per_gpu: tiles that a GPU encodes at once.

    Raises:
        UsageError: the bundle has no such checkpoint.
        BundleError: the engine is another one's.
        CapabilityError: TensorRT-LLM, a GPU, or what encodes images is missing.
    """
    plan = plan_engine(bundle.folder, engine)
    require_built(plan)
    require_executor(plan.config)
    # Before the executor, which takes most of the memory that is left.
    vision, tiles = open_vision(bundle, device, plan.ranks, tiles_per_gpu, TARGET)
    executor, bindings = open_executor(engine, plan.config)
    session = ExecutorSession(executor, bindings, plan.config, plan.sizes, bundle.spec.image_token_id)
    return Deployment(session, vision, tiles)


def open_llm_api(
    bundle: Bundle, target: str, checkpoint: Path, tp: int, device: Device, tiles_per_gpu: int
) -> Deployment:
    """The LLM API on a Hugging Face checkpoint.

    Args:
        target: the bundle's target that wrote the checkpoint.
        tp: GPUs that share each layer.

    Raises:
        BundleError: the bundle has nothing that encodes images.
        CapabilityError: TensorRT-LLM, a GPU, or what encodes images is missing.
    """
    spec = bundle.spec
    require_llm_api(tp)
    vision, tiles = open_vision(bundle, device, tp, tiles_per_gpu, target)
    llm, library = open_llm(checkpoint, spec.architecture, tp)
    positions = spec.language.max_position_embeddings
    return Deployment(LlmApiSession(llm, library, getattr(torch, spec.dtype), positions), vision, tiles)
