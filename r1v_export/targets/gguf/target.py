"""The target `gguf`: the two files that llama.cpp loads, the language model's and the tower's with its projector."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from r1v_export.config import BuildConfig, Compute, Device
from r1v_export.contract import BlockwiseEngine
from r1v_export.errors import UsageError
from r1v_export.model_spec import ModelSpec
from r1v_export.progress import ProgressCallback
from r1v_export.quantization.recipe import Scheme, load
from r1v_export.reference.model import ReferenceEngine
from r1v_export.serialized.pipeline import EngineDocument
from r1v_export.targets.gguf import doctor
from r1v_export.targets.gguf.check_model import check_model, warnings
from r1v_export.targets.gguf.config import GgufConfig
from r1v_export.targets.gguf.write.types import type_of, types_of
from r1v_export.targets.interface import BuildInputs, NumericsSpec, OwnWeights, Readiness, Target


class GgufTarget(Target):
    """Writes two files that hold all that llama.cpp needs: weights, tokenizer, chat template, image settings."""

    name = "gguf"
    config_class = GgufConfig
    read_back = "read back with gguf-py and computed in PyTorch as llama.cpp does, without llama.cpp"
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
                fix="choose one of these; int8 has as many bits",
            )
        options = config.options(self.name, GgufConfig)
        if options.files != "both" and config.parity.enabled:
            raise UsageError(
                "The parity gate needs both GGUF files.",
                where=f"files in the block of {self.name} in the build file",
                expected="both",
                found=options.files,
                fix="pass --no-parity; or build both, which the gate then checks, and use one of them",
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

    def warnings(self, config: BuildConfig, spec: ModelSpec, schemes: Mapping[str, Scheme]) -> tuple[str, ...]:
        from r1v_export.targets.gguf.write.plan import plan_tensors, plan_warnings

        options = config.options(self.name, GgufConfig)
        return (*warnings(spec), *plan_warnings(options, plan_tensors(config, spec, schemes)))

    def size_bytes(self, config: BuildConfig, spec: ModelSpec, schemes: Mapping[str, Scheme]) -> int:
        from r1v_export.targets.gguf.write.plan import plan_tensors

        return sum(tensor.nbytes for tensor in plan_tensors(config, spec, schemes))

    def numerics(self, config: BuildConfig, spec: ModelSpec) -> NumericsSpec:
        """Half precision: that of the scales, and of llama.cpp's table of GELU. Inputs of quantized products are
        rounded to 8 bits, 32 or 256 to a scale."""
        options = config.options(self.name, GgufConfig)
        own: OwnWeights | None = None
        if "Q8_0" in (options.model, options.mmproj):
            own = "8-bit weights"
        if options.model == "Q4_K_M":
            own = "4-bit weights"
        compute: Compute = "bfloat16" if config.precision == "bf16" else "float16"
        return NumericsSpec(compute, rounds_inputs=config.quantized, own_weights=own)

    def build(self, inputs: BuildInputs, out: Path, on_progress: ProgressCallback) -> None:
        from r1v_export.targets.gguf.write.files import write_gguf

        write_gguf(inputs.checkpoint, inputs.artifact, inputs.config, out, on_progress)

    def engine_document(self, engine: Path) -> EngineDocument:
        files = {name: f"{name}.gguf" for name in ("model", "mmproj")}
        return EngineDocument(
            files={name: file for name, file in files.items() if (engine / file).is_file()}, options={}
        )

    def missing(self, device: Device) -> str | None:
        return doctor.readiness().lacks

    def open(self, engine: Path, spec: ModelSpec, device: Device) -> ReferenceEngine:
        doctor.require()
        from r1v_export.targets.gguf.runtime.reader import open_gguf

        return open_gguf(engine, spec, device)

    def open_blocks(self, engine: Path, spec: ModelSpec, device: Device) -> BlockwiseEngine:
        doctor.require()
        from r1v_export.targets.gguf.runtime.reader import GgufBlocks

        return GgufBlocks(engine, spec)
