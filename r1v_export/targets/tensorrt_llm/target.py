"""The target `tensorrt-llm`: a checkpoint for `trtllm-build`, proved before any engine is built from it."""

from __future__ import annotations

from collections import abc
from importlib.util import find_spec
from pathlib import Path

import torch

from r1v_export import contract
from r1v_export.bundle import GRAPHS, Bundle
from r1v_export.config import BuildConfig, Compute, Device
from r1v_export.contract import VisionEngine
from r1v_export.errors import CapabilityError
from r1v_export.model_spec import ModelSpec
from r1v_export.progress import Progress, ProgressCallback
from r1v_export.quantization.recipe import Scheme
from r1v_export.quantization.sizes import weight_bytes
from r1v_export.serialized.pipeline import EngineDocument
from r1v_export.targets import registry
from r1v_export.targets.interface import BuildInputs, Deployment, NumericsSpec, Readiness, Target
from r1v_export.targets.onnxruntime.doctor import DISTRIBUTIONS as ONNX_RUNTIME
from r1v_export.targets.onnxruntime.doctor import INSTALL as INSTALL_ONNX_RUNTIME
from r1v_export.targets.tensorrt_llm import doctor
from r1v_export.targets.tensorrt_llm.build import engine_plan
from r1v_export.targets.tensorrt_llm.build.command import engine_sizes
from r1v_export.targets.tensorrt_llm.build.engine_plan import CHECKPOINT, EnginePlan
from r1v_export.targets.tensorrt_llm.checkpoint.config import rotary_scaling
from r1v_export.targets.tensorrt_llm.checkpoint.formats import language_schemes, module_quant_formats
from r1v_export.targets.tensorrt_llm.checkpoint.mapping import Mapping, check_mapping
from r1v_export.targets.tensorrt_llm.checkpoint.writer import write_checkpoint
from r1v_export.targets.tensorrt_llm.config import TensorRTLLMConfig
from r1v_export.targets.tensorrt_llm.runtime.deployment import LLM_API, open_deployment
from r1v_export.targets.tensorrt_llm.runtime.engine import CheckpointBlocks, CheckpointEngine, load_language_model
from r1v_export.targets.vision import open_vision


class TensorRTLLMTarget(Target):
    """Writes the language model as a TensorRT-LLM checkpoint. Needs no TensorRT-LLM; engines are built from it on a
    machine that has it, see `r1v-export engine`."""

    name = engine_plan.TARGET
    unpacks_whole_blocks = True
    graphs = (contract.VISION, contract.PROJECTOR)
    config_class = TensorRTLLMConfig
    read_back = "read back by r1v-export and computed in PyTorch, images in ONNX Runtime, without TensorRT-LLM"
    tools = (doctor.DISTRIBUTION, *ONNX_RUNTIME)
    fp8_per_tensor = True
    engine_syntax = "a folder of `r1v-export engine`"

    def readiness(self) -> Readiness:
        return doctor.readiness()

    def check(self, config: BuildConfig) -> None:
        """Check what the config alone shows."""
        if registry.compute_dtype(config) == "bfloat16" and config.parity.enabled:
            raise CapabilityError(
                "A bfloat16 build cannot be checked: ONNX Runtime has no such kernels for the vision graph.",
                where="tensorrt-llm",
                expected="fp32, fp16 or a quantized precision, whose language model keeps the checkpoint's bfloat16",
                found=config.precision,
                fix="--no-parity builds it unchecked",
            )

    def check_model(self, config: BuildConfig, spec: ModelSpec, schemes: abc.Mapping[str, Scheme]) -> None:
        options = self._options(config)
        rotary_scaling(spec.language)
        quant_formats = module_quant_formats(spec.language, language_schemes(schemes))
        check_mapping(spec.language, quant_formats, Mapping(options.tp, options.pp))
        engine_sizes(options, spec)

    def size_bytes(self, config: BuildConfig, spec: ModelSpec, schemes: abc.Mapping[str, Scheme]) -> int:
        """The language model; its embedding is whole on every GPU."""
        sizes = weight_bytes(spec, schemes, _compute(config, spec))
        return sizes[contract.DECODER] + self._options(config).tp * sizes[contract.EMBED]

    def numerics(self, config: BuildConfig, spec: ModelSpec) -> NumericsSpec:
        return NumericsSpec(_compute(config, spec))

    def build(self, inputs: BuildInputs, out: Path, on_progress: ProgressCallback) -> None:
        config, options = inputs.config, self._options(inputs.config)
        dtype = getattr(torch, _compute(config, inputs.checkpoint.spec))
        folder = out / CHECKPOINT
        folder.mkdir(exist_ok=True)
        write_checkpoint(
            inputs.checkpoint,
            inputs.artifact,
            folder,
            dtype,
            parallel=Mapping(options.tp, options.pp),
            layout=options.kernel_layout,
            on_progress=on_progress,
        )

    def engine_document(self, engine: Path) -> EngineDocument:
        return EngineDocument(files={CHECKPOINT: CHECKPOINT}, options={})

    def missing(self, device: Device) -> str | None:
        if find_spec("onnxruntime") is None:
            return "onnxruntime is not installed: it runs the vision graph"
        return None

    def open(self, engine: Path, spec: ModelSpec, device: Device) -> CheckpointEngine:
        """The checkpoint computed by PyTorch, vision by ONNX Runtime."""
        graphs = self._graphs_of(engine, device)
        from r1v_export.targets.onnxruntime.runtime.engine import OnnxRuntimeEngine

        vision = OnnxRuntimeEngine(graphs, graphs, spec.sizes, device)
        return CheckpointEngine(load_language_model(engine / CHECKPOINT, spec), vision, device)

    def open_blocks(self, engine: Path, spec: ModelSpec, device: Device) -> CheckpointBlocks:
        """The same, a block at a time."""
        graphs = self._graphs_of(engine, device)
        from r1v_export.targets.onnxruntime.blockwise import OnnxRuntimeBlocks

        return CheckpointBlocks(engine / CHECKPOINT, spec, OnnxRuntimeBlocks(graphs, graphs, spec, device))

    def _graphs_of(self, engine: Path, device: Device) -> Path:
        missing = self.missing(device)
        if missing is not None:
            raise CapabilityError("The checkpoint cannot be run here.", found=missing, fix=INSTALL_ONNX_RUNTIME)
        return engine.resolve().parents[1] / GRAPHS

    def plan_engine(self, bundle: Path, out: Path, workers: int | None) -> EnginePlan:
        return engine_plan.plan_engine(bundle, out, workers)

    def build_engine(self, plan: EnginePlan, program: Path | None, progress: Progress) -> None:
        engine_plan.build_engine(plan, program, progress)

    def runtime_extras(self, device: Device) -> tuple[str, ...]:
        """ONNX Runtime encodes images."""
        return (*super().runtime_extras(device), "onnxruntime-gpu" if device == "cuda" else "onnxruntime")

    def takes_engine(self, engine: str) -> bool:
        return engine != LLM_API

    def check_engine(self, bundle: Bundle, engine: str) -> int:
        plan = engine_plan.plan_engine(bundle.folder, Path(engine))
        engine_plan.require_built(plan)
        return plan.ranks

    def open_vision(self, bundle: Bundle, device: Device, tiles_per_gpu: int) -> VisionEngine:
        return open_vision(bundle, device, 1, tiles_per_gpu, self.name)[0]

    def open_generator(self, bundle: Bundle, engine: str, device: Device, tiles_per_gpu: int) -> Deployment:
        """Open an engine with TensorRT-LLM, and the vision graphs for images."""
        return open_deployment(bundle, Path(engine), device, tiles_per_gpu)

    def _options(self, config: BuildConfig) -> TensorRTLLMConfig:
        return config.options(self.name, TensorRTLLMConfig)


def _compute(config: BuildConfig, spec: ModelSpec) -> Compute:
    """What is asked for; around quantized linears the checkpoint's own 16 bits: R1V's activations need the range of its
    bfloat16."""
    if not config.quantized:
        return registry.compute_dtype(config)
    return "float16" if spec.dtype == "float32" else spec.dtype
