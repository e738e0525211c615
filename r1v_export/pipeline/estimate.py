"""Before the work: how large, how long, and whether this machine can hold it."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

import psutil

from r1v_export.errors import CapabilityError
from r1v_export.model_spec import ModelSpec
from r1v_export.pipeline.stage import Stage
from r1v_export.progress import size
from r1v_export.quantization.sizes import graph_tensors

HASH_BYTES_PER_S = 600e6
WRITE_BYTES_PER_S = 150e6
"""Read, cast, write, sync and hash; seen on two cores with a 290 MB/s disk."""
TRACE_S = 4.0
"""Tracing one graph, whatever the model's size."""

_SPARE_BYTES = 64 << 20


def graph_parameters(spec: ModelSpec) -> dict[str, int]:
    """Number of parameters in each graph; a tied embedding counts in both graphs that hold it."""
    return {graph: sum(tensors.values()) for graph, tensors in graph_tensors(spec).items()}


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


def require_memory(parameters: int) -> None:
    """Check that the parity gate's reference model fits into memory.

    Raises:
        CapabilityError: the parity gate's reference model, in float32, does not fit into memory.
    """
    needed, free = parameters * 4, psutil.virtual_memory().available
    if free < needed:
        raise CapabilityError(
            "The parity gate's PyTorch reference does not fit into memory.",
            expected=f"{size(needed)} of free memory",
            found=f"{size(free)}",
            fix="build with --no-parity, and run `r1v-export check` on a larger machine",
        )
