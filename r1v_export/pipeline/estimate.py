"""Before the work: how large, how long, and whether this machine can hold it."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

from r1v_export import contract
from r1v_export.config import ParityConfig
from r1v_export.errors import CapabilityError
from r1v_export.model_spec import ModelSpec
from r1v_export.pipeline.stage import Stage
from r1v_export.progress import size
from r1v_export.quantization.sizes import graph_tensors

WRITE_BYTES_PER_S = 150e6
"""Read, cast, write, sync and hash; seen on two cores with a 290 MB/s disk."""
TRACE_S = 4.0
"""Tracing one graph, whatever the model's size."""

READ_BYTES_PER_S = 300e6
"""Of a checkpoint and an engine that the page cache does not hold."""
STREAMED_FLOPS_PER_S = 60e9
"""Of float32 products on two cores."""

GENERATED_TILES = 3
"""Of a generated question, in the mean."""
_TEXT_TOKENS = 96
"""Of a generated question with its template."""

_SPARE_BYTES = 64 << 20


def graph_parameters(spec: ModelSpec) -> dict[str, int]:
    """Number of parameters in each graph; a tied embedding counts in both graphs that hold it."""
    return {graph: sum(tensors.values()) for graph, tensors in graph_tensors(spec).items()}


def positions(spec: ModelSpec) -> int:
    """Of a tile in the tower: its patches and the class token."""
    return 1 + spec.tile_patches**2


def question_tokens(spec: ModelSpec) -> int:
    """Of a generated question's prompt, roughly."""
    return GENERATED_TILES * spec.tokens_per_tile + _TEXT_TOKENS


def require_disk(out: Path, stages: Iterable[Stage]) -> None:
    """Check that the disk has room for what the stages write.

    Raises:
        CapabilityError: the disk of `out` has no room for what the stages will write.
    """
    needed = sum(stage.size_bytes for stage in stages) + _SPARE_BYTES
    folder = next(path for path in (out.absolute(), *out.absolute().parents) if path.is_dir())
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise CapabilityError(
            "The disk is too small for this build.",
            where=out,
            expected=f"{size(needed)} free",
            found=f"{size(free)} free",
            fix="make room, or choose a folder on another disk with -o FOLDER",
        )


def streamed_gate_s(spec: ModelSpec, parity: ParityConfig) -> float:
    """Seconds of a streamed gate's one comparison: the reference computes every block once, the engine twice."""
    tiles = GENERATED_TILES * parity.streamed_questions
    tokens = parity.streamed_questions * question_tokens(spec)
    parameters = graph_parameters(spec)
    products = parameters[contract.VISION] * tiles * positions(spec) + parameters[contract.DECODER] * tokens
    read = 2 * sum(parameters.values()) / READ_BYTES_PER_S
    return 3 * (2 * products / STREAMED_FLOPS_PER_S + read)
