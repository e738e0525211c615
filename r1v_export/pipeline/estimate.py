"""Before the work: how large, how long, and whether this machine can hold it."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

from r1v_export import contract
from r1v_export.config import Matmul, ParityConfig
from r1v_export.cpus import thread_count
from r1v_export.errors import CapabilityError
from r1v_export.model_spec import ModelSpec
from r1v_export.pipeline.stage import Stage
from r1v_export.pipeline.workspace import unfinished_bytes
from r1v_export.progress import size
from r1v_export.quantization.sizes import graph_tensors

WRITE_BYTES_PER_S = 150e6
"""Read, cast, write, sync and hash; seen on two cores with a 290 MB/s disk."""
TRACE_S = 4.0
"""Tracing one graph, whatever the model's size."""

READ_BYTES_PER_S = 300e6
"""Of a checkpoint and an engine that the page cache does not hold."""
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
_GATE_S = 4.0
_PROBE_S = 0.1
_PROBE_SHAPE = (512, 2048, 2048)


@dataclass(frozen=True)
class Rates:
    """How fast this machine computes.

    Attributes:
        cores: those that operators use.
        float32, bfloat16: operations per core-second in products of large matrices, by what the operands are.
    """

    cores: int
    float32: float
    bfloat16: float

    def flops(self, matmul: Matmul) -> float:
        """Operations per second in products, on all cores."""
        return self.cores * (self.float32 if matmul == "float32" else self.bfloat16)


@lru_cache(maxsize=1)
def measured_rates() -> Rates:
    """Measure the rates of products, in less than half a second. Other processes on the machine do not count."""
    import torch

    rows, inner, columns = _PROBE_SHAPE
    a, b = torch.ones(rows, inner), torch.ones(columns, inner)
    rates = {}
    for dtype in (torch.float32, torch.bfloat16):
        x, weight = a.to(dtype), b.to(dtype)
        torch.nn.functional.linear(x, weight)
        started, count = time.process_time(), 0
        while time.process_time() - started < _PROBE_S:
            torch.nn.functional.linear(x, weight)
            count += 1
        rates[dtype] = 2 * rows * inner * columns * count / (time.process_time() - started)
    return Rates(thread_count().count, rates[torch.float32], rates[torch.bfloat16])


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
    folder = next(path for path in (out.absolute(), *out.absolute().parents) if path.is_dir())
    held = unfinished_bytes(out, (stage.name for stage in stages))
    room = shutil.disk_usage(folder).free + held
    written, peaks = _SPARE_BYTES, []
    for stage, found in zip(stages, needs, strict=True):
        peaks.append(written + stage.size_bytes + found.scratch_bytes)
        written += stage.size_bytes
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


def refuse_impossible(out: Path, stages: Sequence[Stage]) -> None:
    """Check that stages that are to run can run here.

    Raises:
        CapabilityError: this machine lacks the memory, the disk or something else.
    """
    for _, obstacle in obstacles(out, stages):
        raise obstacle


def writing_s(base_s: float, size_bytes: int) -> float:
    """Seconds of a stage that writes so much and otherwise takes `base_s`."""
    return base_s + size_bytes / WRITE_BYTES_PER_S


def gate_s(
    kind: Literal["whole", "streamed"], spec: ModelSpec, parity: ParityConfig, rates: Rates, comparisons: int
) -> float:
    """Seconds of a parity gate with one or two comparisons."""
    seconds = _whole_gate_s if kind == "whole" else _streamed_gate_s
    return seconds(spec, parity, rates, comparisons)


def _whole_gate_s(spec: ModelSpec, parity: ParityConfig, rates: Rates, comparisons: int) -> float:
    """Seconds of a whole gate, by what reference and engine both read and compute for each comparison."""
    parameters, tokens = graph_parameters(spec), parity.questions * question_tokens(spec)
    tiles = GENERATED_TILES * parity.questions
    products = parameters[contract.VISION] * tiles * positions(spec) + parameters[contract.DECODER] * tokens
    decoded = _FLOAT_BYTES * parameters[contract.DECODER] * parity.questions * parity.max_new_tokens
    read = 2 * sum(parameters.values()) / READ_BYTES_PER_S
    return comparisons * (_GATE_S + 3 * (2 * products / rates.flops("float32") + decoded / _MEMORY_BYTES_PER_S + read))


def _streamed_gate_s(spec: ModelSpec, parity: ParityConfig, rates: Rates, comparisons: int) -> float:
    """Seconds of a streamed gate, at most: the engine computes every block once, decoder layers also on its own
    embeddings, and a token at a time; the reference computes every block once for each comparison."""
    questions, parameters = parity.streamed_questions, graph_parameters(spec)
    decoder, every = parameters[contract.DECODER], sum(parameters.values())
    tile_products = parameters[contract.VISION] * GENERATED_TILES * questions * positions(spec)
    token_products = decoder * questions * question_tokens(spec)
    products = (1 + comparisons) * tile_products + (2 + comparisons) * token_products
    decoded = _FLOAT_BYTES * decoder * questions * parity.streamed_reply_tokens / _MEMORY_BYTES_PER_S
    opened = (1 + comparisons) * _FLOAT_BYTES * every / _OPEN_BYTES_PER_S
    return _GATE_S + 2 * products / rates.flops("float32") + decoded + opened + 4 * every / READ_BYTES_PER_S
