"""The target `compressed-tensors`: a quantized Hugging Face checkpoint as vLLM and SGLang load it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from r1v_export.config import BuildConfig, Device
from r1v_export.errors import UsageError
from r1v_export.model_spec import ModelSpec
from r1v_export.progress import ProgressCallback
from r1v_export.quantization.recipe import Scheme, load
from r1v_export.quantization.sizes import checkpoint_bytes
from r1v_export.serialized.pipeline import EngineDocument
from r1v_export.targets.compressed_tensors import doctor
from r1v_export.targets.compressed_tensors.config import CompressedTensorsConfig
from r1v_export.targets.compressed_tensors.runtime.reader import CompressedEngine, open_compressed
from r1v_export.targets.compressed_tensors.write.checkpoint import write_compressed
from r1v_export.targets.compressed_tensors.write.formats import cache_scheme, format_of, formats
from r1v_export.targets.interface import BuildInputs, NumericsSpec, Readiness, Target
from r1v_export.targets.readers import formats_in, warnings_for


class CompressedTensorsTarget(Target):
    """Writes a folder that is a checkpoint of its own: weights, configuration, tokenizer."""

    name = "compressed-tensors"
    config_class = CompressedTensorsConfig

    def readiness(self) -> Readiness:
        return doctor.readiness()

    def check(self, config: BuildConfig) -> None:
        if not config.quantized:
            raise UsageError(
                "A compressed-tensors checkpoint is a quantized one.",
                where=f"--target {self.name}",
                expected="--precision fp8, int8 or int4",
                found=f"--precision {config.precision}",
                fix="name a quantized precision; unquantized, the checkpoint that is built from is what runtimes load",
            )
        if config.recipe is not None:
            recipe = load(config.recipe)
            cache_scheme(recipe.kv_cache)
            for rule in recipe.rules:
                if rule.scheme is not None:
                    format_of(", ".join(rule.modules), rule.scheme)

    def check_model(self, config: BuildConfig, spec: ModelSpec, schemes: Mapping[str, Scheme]) -> None:
        formats(spec, schemes)

    def warnings(self, spec: ModelSpec, schemes: Mapping[str, Scheme]) -> tuple[str, ...]:
        return warnings_for(self.name, formats_in(formats(spec, schemes), schemes, spec))

    def size_bytes(self, config: BuildConfig, spec: ModelSpec, schemes: Mapping[str, Scheme]) -> int:
        return checkpoint_bytes(spec, schemes, spec.dtype)

    def numerics(self, config: BuildConfig, spec: ModelSpec) -> NumericsSpec:
        """The checkpoint is read back in float32: nothing but what it stores is rounded."""
        return NumericsSpec("float32")

    def build(self, inputs: BuildInputs, out: Path, on_progress: ProgressCallback) -> None:
        assert inputs.artifact is not None, "check refuses builds that quantize nothing"
        write_compressed(inputs.checkpoint, inputs.artifact, out, on_progress)

    def engine_document(self, engine: Path) -> EngineDocument:
        return EngineDocument(files={"checkpoint": "."}, options={})

    def missing(self, device: Device) -> str | None:
        return None

    def open(self, engine: Path, spec: ModelSpec, device: Device) -> CompressedEngine:
        return open_compressed(engine, spec, device)
