"""Before the work: how large, how long, and whether this machine can hold it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from r1v_export import contract
from r1v_export.config import ParityConfig
from r1v_export.errors import CapabilityError
from r1v_export.model_spec import ModelSpec
from r1v_export.pipeline.rates import Rates
from r1v_export.pipeline.stage import Stage
from r1v_export.pipeline.workspace import unfinished_bytes
from r1v_export.progress import size
from r1v_export.quantization.sizes import graph_tensors

if TYPE_CHECKING:
    from r1v_export.quantization.recipe import Scheme

WRITE_BYTES_PER_S = 400e6
"""Cast, written, synced and hashed; rounding apart."""
READ_BYTES_PER_S = 650e6
"""Of a checkpoint and an engine: read and hashed."""
_IMPORT_S = 1.6
"""Of PyTorch's exporter, once in a process."""
_TRACE_S: dict[str, tuple[float, float]] = {contract.VISION: (0.9, 0.3), contract.DECODER: (1.4, 0.46)}
"""Tracing a graph, whatever its width, and each of its layers."""
_SMALL_TRACE_S = 0.8
"""Tracing a graph without layers."""
_ENGINE_S = 0.2

PROCESS_BYTES = 250 << 20
"""Of the process itself: PyTorch, ONNX Runtime, the images of questions."""

GENERATED_TILES = 3
"""Of a generated question, in the mean."""
_TEXT_TOKENS = 96
"""Of a generated question with its template."""

_SPARE_BYTES = 64 << 20
_FLOAT_BYTES = 4
_MEMORY_BYTES_PER_S = 8e9
_OPEN_BYTES_PER_S = 0.7e9
"""Of a block's weights in float32: read, widened or dequantized, their scales checked."""
_QUESTIONS_TOGETHER = 16
_STREAMED_TILES = 2
"""Of a streamed gate's question, in the mean: it asks the first ones."""
_GATE_S, _QUESTION_S = 0.3, 0.12
"""Of opening for a comparison, and of each question in it, whatever the model's size."""
_QUESTION_SHARES = (0.35, 0.1, 0.55)
"""Of a question's time in a whole comparison: encoding, prefill and decoding, as measured with r1v-nano."""
_PLOTTING_S, _PAGE_S = 0.6, 0.8
"""Of what draws plots, which is imported, and of each page with its plots."""


def graph_parameters(spec: ModelSpec) -> dict[str, int]:
    """Number of parameters in each graph; a tied embedding counts in both graphs that hold it."""
    return {graph: sum(tensors.values()) for graph, tensors in graph_tensors(spec).items()}


def positions(spec: ModelSpec) -> int:
    """Of a tile in the tower: its patches and the class token."""
    return 1 + spec.tile_patches**2


def question_tokens(spec: ModelSpec) -> int:
    """Of a generated question's prompt, roughly."""
    return GENERATED_TILES * spec.tokens_per_tile + _TEXT_TOKENS


def obstacles(out: Path, stages: Sequence[Stage]) -> Iterator[tuple[Stage, CapabilityError]]:
    """What this machine lacks for stages that are to run, each with the first stage that it stops."""
    needs = [stage.needs() for stage in stages]
    for stage, found in zip(stages, needs, strict=True):
        if found.obstacle is not None:
            yield stage, found.obstacle
    if not stages:
        return
    held = unfinished_bytes(out, (stage.name for stage in stages))
    room = free_bytes(out) + held
    peaks = disk_bytes([(stage.size_bytes, found.scratch_bytes) for stage, found in zip(stages, needs, strict=True)])
    if room < max(peaks):
        first = next(stage for stage, peak in zip(stages, peaks, strict=True) if room < peak)
        yield (
            first,
            CapabilityError(
                "The disk is too small for this build.",
                where=out,
                expected=f"{size(max(peaks))} free",
                found=f"{size(room)} free" + (f", {size(held)} of it held by an unfinished build here" if held else ""),
                fix="make room, or choose a folder on another disk with -o FOLDER",
            ),
        )


def free_bytes(out: Path) -> int:
    """Free disk where a folder is, or will be."""
    folder = next(path for path in (out.absolute(), *out.absolute().parents) if path.is_dir())
    return shutil.disk_usage(folder).free


def disk_bytes(sizes: Sequence[tuple[int, int]]) -> list[int]:
    """Disk that stages and those before them take, at most, while each of them runs, and some to spare.

    Args:
        sizes: of each stage: of what it writes, and of files that are gone when it ends.
    """
    written = accumulate(size_bytes for size_bytes, _ in sizes)
    return [_SPARE_BYTES + before + scratch for before, (_, scratch) in zip(written, sizes, strict=True)]


def refuse_impossible(out: Path, stages: Sequence[Stage]) -> None:
    """Check that stages that are to run can run here.

    Raises:
        CapabilityError: this machine lacks the memory, the disk or something else.
    """
    for _, obstacle in obstacles(out, stages):
        raise obstacle


def graph_s(
    name: str, spec: ModelSpec, schemes: Mapping[str, Scheme], size_bytes: int, rates: Rates, *, is_first: bool
) -> float:
    """Seconds of exporting a graph.

    Args:
        schemes: of every quantized linear.
        is_first: of the build's graphs.
    """
    traced = tracing_s(name, spec, is_first=is_first)
    return traced + writing_s(size_bytes) + _rounding_s(spec, schemes, (name,), rates)


def tracing_s(name: str, spec: ModelSpec, *, is_first: bool) -> float:
    """Of `graph_s`, the seconds before weights are written."""
    layers = {contract.VISION: spec.vision.num_layers, contract.DECODER: spec.language.num_layers}.get(name, 0)
    base_s, layer_s = _TRACE_S.get(name, (_SMALL_TRACE_S, 0.0))
    return base_s + layer_s * layers + (_IMPORT_S if is_first else 0.0)


def engine_s(
    spec: ModelSpec, schemes: Mapping[str, Scheme], size_bytes: int, rates: Rates, graphs: Sequence[str]
) -> float:
    """Seconds of an engine whose target writes so many bytes of weights; 0 where the graphs hold them.

    Args:
        graphs: that the engine is built from, whose quantized weights are in them.
    """
    if not size_bytes:
        return _ENGINE_S
    own = [graph for graph in contract.GRAPHS if graph not in graphs]
    return _ENGINE_S + writing_s(size_bytes) + _rounding_s(spec, schemes, own, rates)


def writing_s(size_bytes: int) -> float:
    """Seconds in which so much is written."""
    return size_bytes / WRITE_BYTES_PER_S


def _rounding_s(spec: ModelSpec, schemes: Mapping[str, Scheme], graphs: Sequence[str], rates: Rates) -> float:
    """Seconds in which the weights are rounded, or unpacked, whose quantized values no calibration holds."""
    from r1v_export.pipeline.quantization_cost import decoding_passes  # imports torch

    tensors = graph_tensors(spec)
    counts = {name.removesuffix(".weight"): count for graph in graphs for name, count in tensors[graph].items()}
    return sum(
        counts[name] * decoding_passes(scheme) / rates.rounded(scheme.weights.type)
        for name, scheme in schemes.items()
        if name in counts
    )


@dataclass(frozen=True)
class GateWork:
    """What a parity gate compares.

    Attributes:
        comparisons: with how many references: the fake-quantized model, and the original.
        encoders: how many of them have a tower, projector or embeddings of their own.
    """

    comparisons: int
    encoders: int

    @classmethod
    def of(cls, schemes: Mapping[str, Scheme], comparisons: int) -> GateWork:
        """Where nothing but the decoder is quantized, all references encode alike."""
        decoder_alone = all(linear.startswith("language_model.") for linear in schemes)
        return cls(comparisons, encoders=1 if decoder_alone else comparisons)


def pages_s(count: int) -> float:
    """Seconds in which so many reports become pages."""
    return _PLOTTING_S + _PAGE_S * count


def gate_s(
    kind: Literal["whole", "streamed"], spec: ModelSpec, parity: ParityConfig, flops: float, work: GateWork
) -> float:
    """Seconds of a parity gate's comparisons.

    Args:
        flops: operations per second in products of float32.
    """
    if kind == "whole":
        return work.comparisons * comparison_seconds(spec, parity.questions, parity.max_new_tokens, flops).total
    parts = streamed_seconds(spec, parity.streamed_questions, parity.streamed_reply_tokens, flops, work)
    return parts.tower + parts.decoder


@dataclass(frozen=True)
class ComparisonSeconds:
    """Seconds of the parts of a whole comparison with one reference, estimated.

    Attributes:
        opening: of both engines.
        encoding: of all prompts by tower, projector and embeddings.
        prefill: of all prompts by the decoders.
        decoding: of all answers.
    """

    opening: float
    encoding: float
    prefill: float
    decoding: float

    @property
    def comparing(self) -> float:
        """Seconds behind the opening."""
        return self.encoding + self.prefill + self.decoding

    @property
    def total(self) -> float:
        """Seconds of all parts."""
        return self.opening + self.comparing


def comparison_seconds(spec: ModelSpec, questions: int, max_new_tokens: int, flops: float) -> ComparisonSeconds:
    """Estimate the parts of a whole comparison, by what reference and engine both read and compute.

    Args:
        flops: operations per second in products of float32.
    """
    parameters = graph_parameters(spec)
    encoded = parameters[contract.VISION] * GENERATED_TILES * questions * positions(spec)
    filled = parameters[contract.DECODER] * questions * question_tokens(spec)
    steps = max_new_tokens * -(-questions // _QUESTIONS_TOGETHER)
    decoded = _FLOAT_BYTES * parameters[contract.DECODER] * steps
    read = 2 * sum(parameters.values()) / READ_BYTES_PER_S
    computed = (read, 2 * encoded / flops, 2 * filled / flops, decoded / _MEMORY_BYTES_PER_S)
    fixed = (_GATE_S, *(share * _QUESTION_S * questions for share in _QUESTION_SHARES))
    return ComparisonSeconds(*(3 * s + own for s, own in zip(computed, fixed, strict=True)))


@dataclass(frozen=True)
class StreamedSeconds:
    """Seconds of the parts of a streamed gate, estimated: tower and projector, and all behind them."""

    tower: float
    decoder: float

    @property
    def tower_share(self) -> float:
        """Of the time of both."""
        return self.tower / (self.tower + self.decoder)


def streamed_seconds(
    spec: ModelSpec, questions: int, reply_tokens: int, flops: float, work: GateWork
) -> StreamedSeconds:
    """Estimate the parts of a streamed gate: every reference and the engine compute every block once, the engine its
    decoder layers for every encoder's embeddings, replies a token at a time. Logits are of replies alone."""
    parameters = graph_parameters(spec)
    layers = parameters[contract.DECODER] - parameters[contract.EMBED]
    in_tower = parameters[contract.VISION] + parameters[contract.PROJECTOR]
    tokens = _STREAMED_TILES * spec.tokens_per_tile + _TEXT_TOKENS
    tower = (1 + work.encoders) * parameters[contract.VISION] * _STREAMED_TILES * questions * positions(spec)
    sequences = (work.comparisons + work.encoders) * questions
    decoder = sequences * layers * tokens
    decoded = _FLOAT_BYTES * layers * sequences * reply_tokens / _MEMORY_BYTES_PER_S
    opened = (1 + work.comparisons) * _FLOAT_BYTES / _OPEN_BYTES_PER_S
    behind = sum(parameters.values()) - in_tower
    overhead = _GATE_S + _QUESTION_S * questions
    return StreamedSeconds(
        tower=2 * tower / flops + opened * in_tower + overhead / 2,
        decoder=2 * decoder / flops + decoded + opened * behind + overhead / 2,
    )
