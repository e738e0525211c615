"""The targets tensorrt and tensorrt-rtx: from a bundle's standard graphs to plans."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import onnx_ir as ir

from r1v_export import contract
from r1v_export.checkpoint.spec import ModelSpec
from r1v_export.config import BuildConfig, Device
from r1v_export.errors import CapabilityError, GraphError, UsageError
from r1v_export.quantization.sizes import weight_bytes
from r1v_export.targets.registry import Advance, BuildInputs, NumericsSpec
from r1v_export.targets.shared_weights import point_weights_to
from r1v_export.targets.tensorrt.build.compile import Job, compile_plan, lacks_type
from r1v_export.targets.tensorrt.build.ep_context import save_context_model
from r1v_export.targets.tensorrt.build.plan import GRAPH, PlanInfo
from r1v_export.targets.tensorrt.build.profiles import Profile, decoder_capacity, decoder_profiles, tile_profiles
from r1v_export.targets.tensorrt.build.progress import Shares, Tell
from r1v_export.targets.tensorrt.concatenate_graphs import concatenate_graphs
from r1v_export.targets.tensorrt.device import compute_capability, no_gpu
from r1v_export.targets.tensorrt.library import (
    DISTRIBUTIONS,
    OLDEST_COMPUTE_CAPABILITY,
    TENSORRT,
    TENSORRT_RTX,
    Library,
    load,
)
from r1v_export.targets.tensorrt.lower import lower
from r1v_export.targets.tensorrt.runtime.engine import TensorRTEngine
from r1v_export.targets.tensorrt.runtime.loading import open_engine

if TYPE_CHECKING:
    from r1v_export.quantization.recipe import Scheme


@dataclass(frozen=True)
class Part:
    """One plan of an engine: the graphs that it joins, and its share of the work."""

    name: str
    graphs: tuple[str, ...]
    share: float


PARTS = (
    Part(contract.VISION, (contract.VISION, contract.PROJECTOR), 0.45),
    Part(contract.PROJECTOR, (contract.PROJECTOR,), 0.05),
    Part(contract.DECODER, (contract.DECODER,), 0.5),
)
"""Vision and projector are one plan, and give both results. The projector is there once more by itself, for features
that come from elsewhere. The look-up of embeddings is no plan: it reads rows of the bundle's own weights."""


class TensorRTTarget:
    """Writes for each part its plan, a description, the plan's layers, the lowered graph on the bundle's weights, and
    a model by which ONNX Runtime runs the plan."""

    name = TENSORRT
    graphs = contract.GRAPHS

    def check(self, config: BuildConfig) -> None:
        library = load(self.name)
        if config.quantized and config.compute == "float32":
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
        if config.compute == "bfloat16":
            _require(numbers, ir.DataType.BFLOAT16)
        if config.tensorrt.strip and compute_capability() is None:
            raise CapabilityError(
                "Plans without weights cannot be built on a machine without a GPU.",
                where="tensorrt: {strip: true}",
                found=no_gpu(),
                fix="leave `strip` out; the plans then hold their weights",
            )

    def sm(self, library: Library, config: BuildConfig) -> tuple[int, ...]:
        """The compute capabilities to build for; empty: the GPU that is there.

        Raises:
            UsageError: the library does not know one.
            CapabilityError: it builds for the GPU that is there only, and there is none.
        """
        asked = config.tensorrt.sm
        numbers = DISTRIBUTIONS[self.name].default_sm if asked is None else () if asked == "current" else asked
        known = library.compute_capabilities
        if not numbers and compute_capability() is None:
            raise CapabilityError(
                "There is no GPU to build for.",
                where=f"{self.name} {library.version}",
                expected="a CUDA GPU" + (f", or one of --sm {', '.join(map(str, known))}" if known else ""),
                found=no_gpu(),
                fix=f"build on the machine that will run the engine, or build --target {TENSORRT_RTX}",
            )
        unknown = [number for number in numbers if number not in known]
        if unknown:
            raise UsageError(
                f"{self.name} builds ahead of time for no such GPU.",
                where="--sm",
                expected=", ".join(map(str, known)) or "current",
                found=", ".join(map(str, unknown)),
            )
        return tuple(sorted(set(numbers)))

    def check_model(self, config: BuildConfig, spec: ModelSpec, schemes: Mapping[str, Scheme]) -> None:
        """Any model will do."""

    def size_bytes(self, config: BuildConfig, spec: ModelSpec, schemes: Mapping[str, Scheme]) -> int:
        """Plans weigh what their weights do; see docs/tensorrt.md for decoders with two profiles."""
        if config.tensorrt.strip:
            return 0
        sizes = weight_bytes(spec, schemes, config.compute)
        decoders = 2 if config.tensorrt.decode_profile else 1
        return sum(
            sizes[graph] * (decoders if graph == contract.DECODER else 1) for part in PARTS for graph in part.graphs
        )

    def numerics(self, config: BuildConfig, spec: ModelSpec) -> NumericsSpec:
        return NumericsSpec(config.compute)

    def build(self, inputs: BuildInputs, out: Path, advance: Advance) -> None:
        library = load(self.name)
        config, spec = inputs.config, inputs.checkpoint.spec
        positions = spec.language.max_position_embeddings
        sm, shares = self.sm(library, config), Shares(advance)
        for part in PARTS:
            with shares.part(part.name, part.share) as tell:
                compiled(library, part, inputs.graphs, config, positions, sm, out, tell)

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


def compiled(
    library: Library,
    part: Part,
    graphs: Path,
    config: BuildConfig,
    max_positions: int,
    sm: tuple[int, ...],
    out: Path,
    tell: Tell,
) -> PlanInfo:
    """Write everything about one part into `out`.

    Raises:
        CapabilityError: a GPU lacks a type of the graph; the disk is full.
        GraphError: the graph is not as our exporters write it, or TensorRT refuses it.
    """
    model = _lowered(graphs, part, decoder_capacity(config.tensorrt, max_positions))
    ir.save(model, out / f"{part.name}{GRAPH}")
    job = Job(
        name=part.name,
        model=model,
        profiles=_profiles(part, config, max_positions),
        weights_root=graphs.parent,
        sm=sm,
        current=None if sm else compute_capability(),
        strip=config.tensorrt.strip,
    )
    info = compile_plan(library, job, out, tell)
    save_context_model(info, out, part.name)
    return info


def _require(numbers: tuple[int | None, ...], dtype: ir.DataType) -> None:
    oldest = OLDEST_COMPUTE_CAPABILITY[dtype]
    lacking = [number for number in numbers if number is not None and number < oldest]
    if lacking:
        raise lacks_type(dtype.name.lower(), oldest, lacking, "--sm")


def _profiles(part: Part, config: BuildConfig, positions: int) -> list[Profile]:
    if part.name == contract.DECODER:
        return decoder_profiles(config.tensorrt, positions)
    return tile_profiles(config.tensorrt)


def _lowered(graphs: Path, part: Part, capacity: int) -> ir.Model:
    """The part's graph, lowered, its weights' locations relative to the bundle.

    Raises:
        GraphError: it is not as our exporters write it.
    """
    try:
        first, *others = (ir.load(graphs / f"{name}.onnx") for name in part.graphs)
        for other in others:
            first = concatenate_graphs(first, other, part.name)
        lower(first, capacity)
    except ir.passes.PassError as error:
        raise GraphError(
            "A graph cannot be lowered for TensorRT.",
            where=part.name,
            found=error.__cause__ or error,
            fix="export the graph again with this version",
        ) from error
    point_weights_to(first, graphs.name)
    return first
