"""The target `gguf`: the two files that llama.cpp loads, the language model's and the tower's with its projector."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from r1v_export.config import COMPUTE_OF, BuildConfig, Device
from r1v_export.errors import UsageError
from r1v_export.model_spec import ModelSpec
from r1v_export.progress import ProgressCallback
from r1v_export.quantization.recipe import Scheme, load
from r1v_export.quantization.sizes import checkpoint_bytes
from r1v_export.reference.model import ReferenceEngine
from r1v_export.serialized.pipeline import EngineDocument
from r1v_export.targets.gguf import doctor
from r1v_export.targets.gguf.check_model import check_model, warnings
from r1v_export.targets.gguf.config import GgufConfig
from r1v_export.targets.gguf.write.types import type_of, types_of
from r1v_export.targets.interface import BuildInputs, NumericsSpec, Readiness, Target


class GgufTarget(Target):
    """Writes two files that hold all that llama.cpp needs: weights, tokenizer, chat template, image settings."""

    name = "gguf"
    config_class = GgufConfig
    tools = ("gguf",)

    def readiness(self) -> Readiness:
        return doctor.readiness()

    def check(self, config: BuildConfig) -> None:
        doctor.require()
        if config.precision == "fp8":
            raise UsageError(
                "GGUF has no FP8.",
                where=f"--target {self.name}",
                expected="--precision fp32, fp16, bf16, int8 or int4",
                found=f"--precision {config.precision}",
            )
        if config.recipe is None:
            return
        recipe = load(config.recipe)
        if recipe.kv_cache is not None:
            raise UsageError(
                "GGUF holds no scales of a key-value cache.",
                where="kv_cache",
                expected="null: llama.cpp quantizes its cache by itself, --cache-type-k q8_0",
                found=recipe.kv_cache,
                fix="a recipe without kv_cache",
            )
        for rule in recipe.rules:
            if rule.scheme is not None:
                type_of(", ".join(rule.modules), rule.scheme)

    def check_model(self, config: BuildConfig, spec: ModelSpec, schemes: Mapping[str, Scheme]) -> None:
        types_of(schemes)
        check_model(spec, schemes)

    def warnings(self, spec: ModelSpec, schemes: Mapping[str, Scheme]) -> tuple[str, ...]:
        return warnings(spec)

    def size_bytes(self, config: BuildConfig, spec: ModelSpec, schemes: Mapping[str, Scheme]) -> int:
        return checkpoint_bytes(spec, schemes, COMPUTE_OF.get(config.precision, spec.dtype))

    def numerics(self, config: BuildConfig, spec: ModelSpec) -> NumericsSpec:
        """Half precision: that of the scales, and of llama.cpp's table of GELU. Inputs of quantized products are
        rounded to 8 bits, 32 to a scale."""
        return NumericsSpec("bfloat16" if config.precision == "bf16" else "float16", rounds_inputs=config.quantized)

    def build(self, inputs: BuildInputs, out: Path, on_progress: ProgressCallback) -> None:
        from r1v_export.targets.gguf.write.files import write_gguf

        write_gguf(inputs.checkpoint, inputs.artifact, inputs.config, out, on_progress)

    def engine_document(self, engine: Path) -> EngineDocument:
        return EngineDocument(files={"model": "model.gguf", "mmproj": "mmproj.gguf"}, options={})

    def missing(self, device: Device) -> str | None:
        return doctor.readiness().lacks

    def open(self, engine: Path, spec: ModelSpec, device: Device) -> ReferenceEngine:
        doctor.require()
        from r1v_export.targets.gguf.runtime.reader import open_gguf

        return open_gguf(engine, spec, device)
