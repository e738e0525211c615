"""One lowered graph becomes one plan."""

from __future__ import annotations

import json
import logging
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx_ir as ir

from r1v_export.count import Count
from r1v_export.errors import CapabilityError, GraphError
from r1v_export.log_event import log_event
from r1v_export.progress import ProgressCallback
from r1v_export.targets.tensorrt.build.network import Messages, Network, mentioned_node, module_hint, parse
from r1v_export.targets.tensorrt.build.plan import (
    DESCRIPTION,
    LAYERS,
    PLAN,
    Binding,
    PlanInfo,
    PlanWriter,
    stream_writer,
)
from r1v_export.targets.tensorrt.build.profiles import Profile, shapes
from r1v_export.targets.tensorrt.build.progress import monitor
from r1v_export.targets.tensorrt.library import OLDEST_COMPUTE_CAPABILITY, Library
from r1v_export.targets.tensorrt.runtime.caches import TimingCache

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """What one plan is made from.

    sm: compute capabilities that it serves; empty: the GPU that is there, which is `current`.
    weights_root: what the locations of the model's weights are relative to.
    """

    name: str
    model: ir.Model
    profiles: Sequence[Profile]
    weights_root: Path
    sm: tuple[int, ...]
    current: int | None = None
    strip: bool = False


@dataclass
class _Attempt:
    """One run of the builder."""

    fused_attention: bool
    writer: PlanWriter | None = None
    messages: Messages = field(default_factory=Messages)


def compile_plan(library: Library, job: Job, out: Path, on_progress: ProgressCallback) -> PlanInfo:
    """Write `<name>.plan`, its description and its layers into the folder `out`.

    Attention is built as one fused kernel. Where TensorRT has none for it, the build is tried again with attention as
    several kernels, and the description says so.

    Args:
        on_progress: called as the builder's phases run.

    Raises:
        CapabilityError: a GPU that the plan is for lacks a type of the graph; the disk is full.
        GraphError: TensorRT refuses the graph.
    """
    require_types(job.model, job.sm or ((job.current,) if job.current else ()), job.name)
    if not job.strip:
        _require_disk(job.model, out)
    attempt = _build(library, job, out, on_progress, fused_attention=True)
    if attempt.writer is None and library.lacks_fused_attention(attempt.messages.errors):
        message = "%(graph)s: no fused attention kernel; built again with attention as several kernels"
        log_event(_LOG, logging.INFO, message, graph=job.name)
        attempt = _build(library, job, out, on_progress, fused_attention=False)
    if attempt.writer is None:
        raise _refused(library, job, attempt.messages)
    info = _describe(library, job, attempt)
    message = "%(graph)s: for compute capabilities %(compute_capabilities)s, %(size_bytes)s"
    capabilities = info.compute_capabilities
    plan_bytes = Count(info.plan_bytes, "byte")
    log_event(_LOG, logging.INFO, message, graph=job.name, compute_capabilities=capabilities, size_bytes=plan_bytes)
    (out / f"{job.name}{DESCRIPTION}").write_text(info.model_dump_json(indent=2) + "\n", encoding="utf-8")
    layers = [layer_facts(line) for line in attempt.messages.layers]
    (out / f"{job.name}{LAYERS}").write_text(json.dumps(layers, indent=1) + "\n", encoding="utf-8")
    return info


def require_types(model: ir.Model, sm: Sequence[int], name: str) -> None:
    """Check that all GPUs of the engine can compute with the graph's types.

    Raises:
        CapabilityError: a GPU that the engine is for cannot compute with a type of the graph.
    """
    types = {value.dtype for value in model.graph.initializers.values()}
    for dtype, oldest in OLDEST_COMPUTE_CAPABILITY.items():
        lacking = [number for number in sm if number < oldest]
        if dtype in types and lacking:
            raise lacks_type(dtype.name.lower(), oldest, lacking, name)


def _require_disk(model: ir.Model, out: Path) -> None:
    """
    Raises:
        CapabilityError: there is no room for what a plan holds at least, its weights. Said before a long build.
    """
    needed, free = weight_bytes(model), shutil.disk_usage(out).free
    if free < needed:
        raise CapabilityError(
            "The disk has no room for a plan.",
            where=out,
            expected=f"{needed / 1e9:.1f} GB free",
            found=f"{free / 1e9:.1f} GB free",
            fix="make room, or choose a folder on another disk with -o FOLDER",
        )


def lacks_type(dtype: str, oldest: int, lacking: Sequence[int], where: str) -> CapabilityError:
    """Return the error for GPUs that cannot compute with a type."""
    return CapabilityError(
        f"A target GPU does not support {dtype}.",
        where=where,
        expected=f"compute capability {oldest} or newer",
        found=", ".join(map(str, lacking)),
        fix="remove it from --sm, or build another precision for it",
    )


def _build(library: Library, job: Job, out: Path, on_progress: ProgressCallback, fused_attention: bool) -> _Attempt:
    def reading(module: str) -> None:
        on_progress(0.0, 1.0, f"reading {module}")

    network = parse(library, job.model, job.weights_root, job.name, reading)
    attempt = _Attempt(fused_attention, messages=network.messages)
    attentions = library.set_decomposable(network.definition, not fused_attention)
    attempt.fused_attention = fused_attention or not attentions
    config = _configure(library, network, job, on_progress)
    cache = TimingCache(library, config) if library.times_kernels else None
    path = out / f"{job.name}{PLAN}"
    with path.open("wb", buffering=0) as file:
        writer = PlanWriter(file)
        built = _serialize(library, network, config, writer)
    writer.raise_error(path)
    if cache is not None:
        cache.save(config)
    if built:
        attempt.writer = writer
    else:
        path.unlink()
    return attempt


def _configure(library: Library, network: Network, job: Job, on_progress: ProgressCallback) -> Any:
    config = network.builder.create_builder_config()
    library.set_compute_capabilities(config, job.sm)
    config.profiling_verbosity = library.module.ProfilingVerbosity.DETAILED
    config.progress_monitor = monitor(library, on_progress)
    if job.strip:
        library.strip_plan(config)
    dims = {value.name: _dims(value) for value in job.model.graph.inputs}
    for number, profile in enumerate(job.profiles):
        optimization = network.builder.create_optimization_profile()
        for tensor in network.inputs:
            where = f"{job.name}: profile {number}, {tensor.name}"
            optimization.set_shape(tensor.name, *shapes(profile, dims[tensor.name], where))
        config.add_optimization_profile(optimization)
    return config


def _serialize(library: Library, network: Network, config: Any, writer: PlanWriter) -> bool:
    """Stream the plan where the library can; whether there is one."""
    if library.streams:
        stream = stream_writer(library, writer)
        return bool(network.builder.build_serialized_network_to_stream(network.definition, config, stream))
    plan = network.builder.build_serialized_network(network.definition, config)
    if plan is None:
        return False
    writer.write(plan)
    return True


def _refused(library: Library, job: Job, messages: Messages) -> GraphError:
    found = messages.errors[-1] if messages.errors else "no reason given"
    node = mentioned_node(job.model, found)
    where = f"{library.target} {library.version}: {job.name}"
    return GraphError(
        "TensorRT cannot build a graph.",
        where=f"{where}: node {node}" if node else where,
        found=" ".join(found.split())[:600],
        fix=module_hint(node),
    )


def _describe(library: Library, job: Job, attempt: _Attempt) -> PlanInfo:
    assert attempt.writer is not None
    graph = job.model.graph
    ranges = ({symbol: (each.min, each.opt, each.max) for symbol, each in profile.items()} for profile in job.profiles)
    return PlanInfo(
        library=library.target,
        version=library.version,
        compute_capabilities=job.sm or ((job.current,) if job.current else ()),
        bindings=tuple(
            Binding(name=str(value.name), is_input=is_input, dtype=_dtype(value), shape=_dims(value))
            for is_input, values in ((True, graph.inputs), (False, graph.outputs))
            for value in values
        ),
        profiles=tuple(ranges),
        fused_attention=attempt.fused_attention,
        stripped=job.strip,
        weight_bytes=weight_bytes(job.model),
        plan_bytes=attempt.writer.size_bytes,
        sha256=attempt.writer.sha256,
    )


def _dims(value: ir.Value) -> tuple[str | int, ...]:
    return tuple(dim if isinstance(dim, int) else str(dim) for dim in value.shape or ())


def _dtype(value: ir.Value) -> str:
    assert value.dtype is not None
    return {"float": "float32"}.get(value.dtype.name.lower(), value.dtype.name.lower())


def weight_bytes(model: ir.Model) -> int:
    """Of all weights and constants of a graph, as they are stored."""
    tensors = (value.const_value for value in model.graph.initializers.values())
    return sum(int(tensor.nbytes) for tensor in tensors if tensor is not None)


_FIELDS = re.compile(r"Name: (?P<name>.*?), LayerType: (?P<type>\w+)")
_OPERATORS = re.compile(r"\[ONNX Layer: ([^\]]*)\]")
_DATATYPES = re.compile(r"Datatype: (\w+)")


def layer_facts(line: str) -> Mapping[str, Any]:
    """One line of the engine's layers as plain values: name, kind of kernel, types that go in (constants apart) and
    come out, and the graph's nodes that it computes."""
    fields = _FIELDS.search(line)
    inputs, _, rest = line.partition("Constants: [")
    constants, _, outputs = rest.partition("Outputs: [")
    return {
        "name": fields["name"] if fields else line[:120],
        "kind": fields["type"] if fields else "",
        "inputs": _DATATYPES.findall(inputs),
        "constants": _DATATYPES.findall(constants),
        "outputs": _DATATYPES.findall(outputs),
        "nodes": _OPERATORS.findall(line),
    }
