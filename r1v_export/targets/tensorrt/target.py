"""The targets tensorrt and tensorrt-rtx: from a bundle's standard graphs to plans."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import onnx_ir as ir

from r1v_export import contract
from r1v_export.config import BuildConfig, Device
from r1v_export.errors import CapabilityError, UsageError
from r1v_export.gpus import no_gpu
from r1v_export.model_spec import ModelSpec
from r1v_export.progress import ProgressCallback, subrange
from r1v_export.quantization.sizes import GRAPH_PREFIXES, weight_bytes
from r1v_export.serialized.pipeline import EngineDocument
from r1v_export.targets import registry
from r1v_export.targets.interface import BuildInputs, EngineDescription, NumericsSpec, Readiness, Target
from r1v_export.targets.tensorrt.build.compile import lacks_type
from r1v_export.targets.tensorrt.build.inspection import describe_plans
from r1v_export.targets.tensorrt.build.parts import PARTS, compiled
from r1v_export.targets.tensorrt.build.plan import DESCRIPTION, PLAN
from r1v_export.targets.tensorrt.config import TensorRTConfig
from r1v_export.targets.tensorrt.device import compute_capability
from r1v_export.targets.tensorrt.doctor import readiness
from r1v_export.targets.tensorrt.library import (
    DISTRIBUTIONS,
    OLDEST_COMPUTE_CAPABILITY,
    TENSORRT,
    TENSORRT_RTX,
    Library,
    load,
)
from r1v_export.targets.tensorrt.runtime.engine import TensorRTEngine
from r1v_export.targets.tensorrt.runtime.loading import open_engine

if TYPE_CHECKING:
    from r1v_export.quantization.recipe import Scheme


_KERNEL_BYTES = {contract.VISION: 3.5e6, contract.PROJECTOR: 0.3e6, contract.DECODER: 3.5e6}
"""Of one profile of a plan, by part: the plan without its weights. TensorRT-RTX 1.7.1; they depend little on the number
of layers, on their width, and on how many GPUs a plan is for (docs/tensorrt.md has the measurements)."""
_MORE_WITH_QUANTIZED_INPUTS = 1.6


class TensorRTTarget(Target):
    """Writes for each part its plan, a description, the plan's layers, the lowered graph on the bundle's weights, and
    a model by which ONNX Runtime runs the plan."""

    name = TENSORRT
    graphs = contract.GRAPHS
    config_class = TensorRTConfig
    tools = (DISTRIBUTIONS[TENSORRT].distribution,)

    def readiness(self) -> Readiness:
        return readiness(self.name)

    def check(self, config: BuildConfig) -> None:
        library = load(self.name)
        compute = registry.compute_dtype(config)
        if config.quantized and compute == "float32":
            raise UsageError(
                "TensorRT does not compute in float32 around quantized weights, as onnxruntime on the CPU needs it.",
                where=f"--precision {config.precision}",
                expected="one of the two targets",
                found=", ".join(config.targets),
                fix="build onnxruntime into another folder",
            )
        sm = self.sm(library, config)
        numbers = sm or (compute_capability(),)
        if config.precision == "fp8":
            _require(numbers, ir.DataType.FLOAT8E4M3FN)
        if compute == "bfloat16":
            _require(numbers, ir.DataType.BFLOAT16)
        if self.options(config).strip and compute_capability() is None:
            raise CapabilityError(
                "Plans without weights cannot be built on a machine without a GPU.",
                where=f"targets: {{{self.name}: {{strip: true}}}}",
                found=no_gpu(),
                fix="omit `strip`; the plans then contain their weights",
            )

    def check_model(self, config: BuildConfig, spec: ModelSpec, schemes: Mapping[str, Scheme]) -> None:
        for linear, scheme in schemes.items():
            if scheme.inputs is not None and scheme.inputs.mode == "dynamic":
                raise UsageError(
                    "TensorRT quantizes a linear's input by a scale that it knows when it builds.",
                    where=linear,
                    expected="static input scales",
                    found=f"{scheme.inputs.type} inputs with a scale for each token",
                    fix="use a static recipe such as fp8, or --target onnxruntime",
                )
            weights, imported = scheme.weights, scheme.weights.algorithm == "imported"
            if imported and weights.type in ("int8", "fp8") and (scheme.inputs is None or weights.group_size):
                kind, size = weights.type.upper(), weights.group_size
                places = f"in groups of {size}" if size else f"per {weights.granularity}"
                raise UsageError(
                    f"This target is not built from such 8-bit weights: TensorRT's {kind} products have {kind} inputs, "
                    "and one scale for a row at least.",
                    where=linear,
                    expected="int4 weights, or weights and inputs in 8 bits",
                    found=f"{weights.type} weights {places}{'' if scheme.inputs else ', 16-bit inputs'}",
                    fix="--target onnxruntime",
                )

    def options(self, config: BuildConfig) -> TensorRTConfig:
        """Return this target's block of the build config."""
        return config.options(self.name, TensorRTConfig)

    def sm(self, library: Library, config: BuildConfig) -> tuple[int, ...]:
        """The compute capabilities to build for; empty: the GPU that is there.

        Raises:
            UsageError: the library does not know one.
            CapabilityError: it builds for the GPU that is there only, and there is none.
        """
        asked = self.options(config).sm
        numbers = DISTRIBUTIONS[self.name].default_sm if asked is None else () if asked == "current" else asked
        known = library.compute_capabilities
        if not numbers and compute_capability() is None:
            raise CapabilityError(
                "There is no GPU to build for.",
                where=f"{self.name} {library.version}",
                expected="a CUDA GPU" + (f", or one of --sm {', '.join(map(str, known))}" if known else ""),
                found=no_gpu(),
                fix="build on the machine that will run the engine, or "
                + ("pass --sm with what it has" if known else f"build --target {TENSORRT_RTX}"),
            )
        unknown = [number for number in numbers if number not in known]
        if unknown:
            raise UsageError(
                f"{self.name} cannot build ahead of time for this GPU.",
                where="--sm",
                expected=", ".join(map(str, known)) or "current",
                found=", ".join(map(str, unknown)),
                fix="choose among these; for other GPUs, build with --target tensorrt --sm current where one is",
            )
        return tuple(sorted(set(numbers)))

    def size_bytes(self, config: BuildConfig, spec: ModelSpec, schemes: Mapping[str, Scheme]) -> int:
        """Weights of the plans, and kernels of each of their profiles; see docs/tensorrt.md for decoders with two."""
        options = self.options(config)
        weights = weight_bytes(spec, schemes, registry.compute_dtype(config))
        inputs_quantized = {_graph_of(name) for name, scheme in schemes.items() if scheme.inputs is not None}
        total = 0.0
        for part in PARTS:
            decoder = part.name == contract.DECODER
            decoders = 2 if decoder and options.decode_profile else 1
            profiles = decoders if decoder else len(options.tile_profiles)
            more = _MORE_WITH_QUANTIZED_INPUTS if inputs_quantized.intersection(part.graphs) else 1
            total += 0 if options.strip else decoders * sum(weights[graph] for graph in part.graphs)
            total += profiles * _KERNEL_BYTES[part.name] * more
        return round(total)

    def numerics(self, config: BuildConfig, spec: ModelSpec) -> NumericsSpec:
        return NumericsSpec(registry.compute_dtype(config))

    def build(self, inputs: BuildInputs, out: Path, on_progress: ProgressCallback) -> None:
        library = load(self.name)
        positions = inputs.checkpoint.spec.language.max_position_embeddings
        options, sm, begin = self.options(inputs.config), self.sm(library, inputs.config), 0.0
        for part in PARTS:
            report = subrange(on_progress, begin, begin + part.share, part.name)
            compiled(library, part, inputs.graphs, options, positions, sm, out, report)
            report(1.0, 1.0, "done")
            begin += part.share

    def describe(self, engine: Path) -> dict[str, EngineDescription]:
        return describe_plans(engine)

    def engine_document(self, engine: Path) -> EngineDocument:
        """The plans; each one's description says which GPU and TensorRT it is for, and its profiles."""
        return EngineDocument(
            files={part.name: f"{part.name}{PLAN}" for part in PARTS},
            options={
                "descriptions": {part.name: f"{part.name}{DESCRIPTION}" for part in PARTS},
                "graphs": {part.name: list(part.graphs) for part in PARTS},
            },
        )

    def missing(self, device: Device) -> str | None:
        try:
            load(self.name)
        except CapabilityError as error:
            return error.what
        if compute_capability() is None:
            return f"its engines run on a CUDA GPU; found: {no_gpu()}"
        return None if device == "cuda" else "its engines run with --device cuda"

    def open(self, engine: Path, spec: ModelSpec, device: Device) -> TensorRTEngine:
        return open_engine(load(self.name), engine, spec, device)


class TensorRTRTXTarget(TensorRTTarget):
    """The same on TensorRT-RTX, which builds on machines without a GPU."""

    name = TENSORRT_RTX
    tools = (DISTRIBUTIONS[TENSORRT_RTX].distribution,)


def _graph_of(linear: str) -> str:
    """The graph that a linear is in."""
    return next(graph for prefix, graph in GRAPH_PREFIXES if linear.startswith(prefix))


def _require(numbers: tuple[int | None, ...], dtype: ir.DataType) -> None:
    oldest = OLDEST_COMPUTE_CAPABILITY[dtype]
    lacking = [number for number in numbers if number is not None and number < oldest]
    if lacking:
        raise lacks_type(dtype.name.lower(), oldest, lacking, "--sm")
