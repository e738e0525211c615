"""The plans of an engine: which graphs each joins, and how each is made."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from r1v_export import contract
from r1v_export.errors import GraphError
from r1v_export.progress import ProgressCallback
from r1v_export.targets.shared_weights import point_weights_to
from r1v_export.targets.tensorrt.build.compile import Job, compile_plan
from r1v_export.targets.tensorrt.build.ep_context import save_context_model
from r1v_export.targets.tensorrt.build.plan import GRAPH, PlanInfo
from r1v_export.targets.tensorrt.build.profiles import Profile, decoder_capacity, decoder_profiles, tile_profiles
from r1v_export.targets.tensorrt.concatenate_graphs import concatenate_graphs
from r1v_export.targets.tensorrt.config import TensorRTConfig
from r1v_export.targets.tensorrt.device import compute_capability
from r1v_export.targets.tensorrt.library import Library
from r1v_export.targets.tensorrt.lower import lower


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


def compiled(
    library: Library,
    part: Part,
    graphs: Path,
    options: TensorRTConfig,
    max_positions: int,
    sm: tuple[int, ...],
    out: Path,
    on_progress: ProgressCallback,
) -> PlanInfo:
    """Write everything about one part into `out`.

    Raises:
        CapabilityError: a GPU lacks a type of the graph; the disk is full.
        GraphError: the graph is not as our exporters write it, or TensorRT refuses it.
    """
    model = _lowered(graphs, part, decoder_capacity(options, max_positions))
    ir.save(model, out / f"{part.name}{GRAPH}")
    job = Job(
        name=part.name,
        model=model,
        profiles=_profiles(part, options, max_positions),
        weights_root=graphs.parent,
        sm=sm,
        current=None if sm else compute_capability(),
        strip=options.strip,
    )
    info = compile_plan(library, job, out, on_progress)
    save_context_model(info, out, part.name)
    return info


def _profiles(part: Part, options: TensorRTConfig, positions: int) -> list[Profile]:
    if part.name == contract.DECODER:
        return decoder_profiles(options, positions)
    return tile_profiles(options)


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
