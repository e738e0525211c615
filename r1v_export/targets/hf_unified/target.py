"""The target `hf-unified`: a quantized Hugging Face checkpoint for TensorRT-LLM's PyTorch backend, vLLM and SGLang."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from r1v_export.bundle import ENGINES, Bundle
from r1v_export.config import BuildConfig, Device
from r1v_export.errors import UsageError
from r1v_export.model_spec import ModelSpec
from r1v_export.progress import ProgressCallback
from r1v_export.quantization.recipe import Scheme, load
from r1v_export.quantization.sizes import checkpoint_bytes
from r1v_export.serialized.pipeline import EngineDocument
from r1v_export.targets.hf_unified import doctor
from r1v_export.targets.hf_unified.config import HfUnifiedConfig
from r1v_export.targets.hf_unified.runtime.reader import UnifiedEngine, open_unified
from r1v_export.targets.hf_unified.write.checkpoint import write_unified
from r1v_export.targets.hf_unified.write.formats import algorithm_of, algorithms, cache_algorithm
from r1v_export.targets.interface import BuildInputs, Deployment, NumericsSpec, Readiness, Target
from r1v_export.targets.readers import formats_in, warnings_for
from r1v_export.targets.tensorrt_llm.runtime.deployment import LLM_API, open_llm_api

_PRECISIONS = ("fp8", "int4")


class HfUnifiedTarget(Target):
    """Writes a folder that is a checkpoint of its own: weights, configuration, tokenizer."""

    name = "hf-unified"
    config_class = HfUnifiedConfig
    fp8_per_tensor = True
    engine_syntax = LLM_API

    def readiness(self) -> Readiness:
        return doctor.readiness()

    def check(self, config: BuildConfig) -> None:
        if not config.quantized:
            raise UsageError(
                "A unified checkpoint is a quantized one.",
                where=f"--target {self.name}",
                expected="--precision fp8 or int4",
                found=f"--precision {config.precision}",
                fix="name a quantized precision; unquantized, the checkpoint that is built from is what runtimes load",
            )
        if config.recipe is None and config.precision not in _PRECISIONS:
            raise UsageError(
                "The unified layout does not hold this precision.",
                where=f"--target {self.name}",
                expected=f"--precision {' or '.join(_PRECISIONS)}",
                found=f"--precision {config.precision}",
            )
        if config.recipe is not None:
            recipe = load(config.recipe)
            cache_algorithm(recipe.kv_cache)
            for rule in recipe.rules:
                if rule.scheme is not None:
                    algorithm_of(", ".join(rule.modules), rule.scheme)

    def check_model(self, config: BuildConfig, spec: ModelSpec, schemes: Mapping[str, Scheme]) -> None:
        algorithms(spec, schemes)

    def warnings(self, spec: ModelSpec, schemes: Mapping[str, Scheme]) -> tuple[str, ...]:
        return warnings_for(self.name, formats_in(algorithms(spec, schemes), schemes, spec))

    def size_bytes(self, config: BuildConfig, spec: ModelSpec, schemes: Mapping[str, Scheme]) -> int:
        return checkpoint_bytes(spec, schemes, spec.dtype)

    def numerics(self, config: BuildConfig, spec: ModelSpec) -> NumericsSpec:
        """The checkpoint is read back in float32: nothing but what it stores is rounded."""
        return NumericsSpec("float32")

    def build(self, inputs: BuildInputs, out: Path, on_progress: ProgressCallback) -> None:
        assert inputs.artifact is not None, "check refuses builds that quantize nothing"
        write_unified(inputs.checkpoint, inputs.artifact, out, on_progress)

    def engine_document(self, engine: Path) -> EngineDocument:
        return EngineDocument(files={"checkpoint": "."}, options={})

    def missing(self, device: Device) -> str | None:
        return None

    def open(self, engine: Path, spec: ModelSpec, device: Device) -> UnifiedEngine:
        return open_unified(engine, spec, device)

    def takes_engine(self, engine: str) -> bool:
        return engine == LLM_API

    def open_generator(self, bundle: Bundle, engine: str, device: Device, tiles_per_gpu: int) -> Deployment:
        """TensorRT-LLM's LLM API on the checkpoint."""
        checkpoint = bundle.folder / ENGINES / bundle.target(self.name)
        tp = bundle.config.options(self.name, HfUnifiedConfig).tp
        return open_llm_api(bundle, self.name, checkpoint, tp, device, tiles_per_gpu)
