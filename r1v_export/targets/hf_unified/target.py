"""The target `hf-unified`: a quantized Hugging Face checkpoint for TensorRT-LLM's PyTorch backend, vLLM and SGLang."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from r1v_export.bundle import ENGINES, Bundle
from r1v_export.config import Device
from r1v_export.contract import BlockwiseEngine, VisionEngine
from r1v_export.model_spec import ModelSpec
from r1v_export.progress import ProgressCallback
from r1v_export.quantization.artifact.qweight_layout import UNIFIED
from r1v_export.quantization.kv_scales import CacheType
from r1v_export.quantization.recipe import Scheme
from r1v_export.targets.hf_unified import doctor
from r1v_export.targets.hf_unified.config import HfUnifiedConfig
from r1v_export.targets.hf_unified.runtime.reader import UnifiedEngine, UnifiedFiles, open_unified
from r1v_export.targets.hf_unified.write.checkpoint import write_unified
from r1v_export.targets.hf_unified.write.formats import algorithm_of, algorithms, cache_algorithm
from r1v_export.targets.hub_reader import open_blocks
from r1v_export.targets.hub_target import HubTarget
from r1v_export.targets.interface import BuildInputs, Deployment, Readiness
from r1v_export.targets.tensorrt_llm.runtime.deployment import LLM_API, open_llm_api
from r1v_export.targets.vision import open_vision


class HfUnifiedTarget(HubTarget):
    """Writes a folder that is a checkpoint of its own: weights, configuration, tokenizer."""

    name = "hf-unified"
    layout, precisions = "unified", ("fp8", "int4")
    qweight_layouts = (UNIFIED,)
    config_class = HfUnifiedConfig
    read_back = "read back by r1v-export and computed in PyTorch, without TensorRT-LLM, vLLM and SGLang"
    fp8_per_tensor = True
    engine_syntax = LLM_API

    def readiness(self) -> Readiness:
        return doctor.readiness()

    def check_cache(self, kind: CacheType | None) -> None:
        cache_algorithm(kind)

    def check_scheme(self, where: str, scheme: Scheme) -> None:
        algorithm_of(where, scheme)

    def formats(self, spec: ModelSpec, schemes: Mapping[str, Scheme]) -> Mapping[str, str]:
        return algorithms(spec, schemes)

    def build(self, inputs: BuildInputs, out: Path, on_progress: ProgressCallback) -> None:
        assert inputs.artifact is not None, "check refuses builds that quantize nothing"
        write_unified(inputs.checkpoint, inputs.artifact, out, on_progress, inputs.stored, inputs.reused)

    def open(self, engine: Path, spec: ModelSpec, device: Device) -> UnifiedEngine:
        return open_unified(engine, spec, device)

    def open_blocks(self, engine: Path, spec: ModelSpec, device: Device) -> BlockwiseEngine:
        return open_blocks(self.name, UnifiedFiles(engine), spec)

    def takes_engine(self, engine: str) -> bool:
        return engine == LLM_API

    def check_engine(self, bundle: Bundle, engine: str) -> int:
        bundle.target(self.name)
        return bundle.config.options(self.name, HfUnifiedConfig).tp

    def open_vision(self, bundle: Bundle, device: Device, tiles_per_gpu: int) -> VisionEngine:
        return open_vision(bundle, device, 1, tiles_per_gpu, self.name)[0]

    def open_generator(self, bundle: Bundle, engine: str, device: Device, tiles_per_gpu: int) -> Deployment:
        """TensorRT-LLM's LLM API on the checkpoint."""
        checkpoint = bundle.folder / ENGINES / bundle.target(self.name)
        tp = bundle.config.options(self.name, HfUnifiedConfig).tp
        return open_llm_api(bundle, self.name, checkpoint, tp, device, tiles_per_gpu)
