"""Binding: a traced graph's initialisers become lazily read checkpoint tensors, streamed to external data."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import onnx_ir as ir
import torch
from torch import Tensor

from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.errors import CheckpointError
from r1v_export.exporters.graph import GraphSource
from r1v_export.exporters.passes.transposed_weights import TRANSPOSED

ALIGNMENT_BYTES = 4096
"""Every tensor starts on a page, so that engines can map the file."""

CHUNK_BYTES = 64 << 20
"""Weights are cast and transposed this much at a time."""

DTYPES = {torch.float32: ir.DataType.FLOAT, torch.float16: ir.DataType.FLOAT16, torch.bfloat16: ir.DataType.BFLOAT16}


def save_with_weights(
    model: ir.Model,
    source: GraphSource,
    checkpoint: Checkpoint,
    compute: torch.dtype,
    path: Path,
    on_bytes: Callable[[int], None] = lambda written: None,
) -> None:
    """Write `path` (the graph) and its `.data` (the weights, in the order of the graph's initialisers).

    Holds one checkpoint tensor at a time, cast to `compute` in chunks. `on_bytes` is told of every chunk written.
    """
    data_path = path.with_suffix(".data")
    layout = _lay_out(model, data_path.name, compute)
    ir.save(model, path)
    with data_path.open("wb") as file:
        for external in layout:
            file.write(b"\0" * (external.offset - file.tell()))
            for chunk in _chunks(external.name, source, checkpoint, compute):
                _require_finite(chunk, external.name)
                _write(file, chunk)
                on_bytes(chunk.nbytes)


def unbound(model: ir.Model) -> list[ir.Value]:
    """Initialisers that wait for their checkpoint tensor."""
    return [value for value in model.graph.initializers.values() if value.const_value is None]


def _lay_out(model: ir.Model, location: str, compute: torch.dtype) -> list[ir.ExternalTensor]:
    layout, offset = [], 0
    for value in unbound(model):
        assert value.shape is not None
        assert value.name is not None
        length = math.prod(value.shape.numpy()) * compute.itemsize
        external = ir.ExternalTensor(location, offset, length, DTYPES[compute], shape=value.shape, name=value.name)
        value.const_value = external
        layout.append(external)
        offset = -(-(offset + length) // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
    return layout


def _chunks(name: str, source: GraphSource, checkpoint: Checkpoint, compute: torch.dtype) -> Iterator[Tensor]:
    """The initialiser's content in file order, a few rows at a time, cast to `compute`."""
    if name in source.derived:
        tensor = source.derived[name](checkpoint.read)
    elif name.endswith(TRANSPOSED):
        tensor = checkpoint.read(name.removesuffix(TRANSPOSED)).t()
    else:
        tensor = checkpoint.read(name)
    rows = tensor.reshape(1, -1) if tensor.dim() < 2 else tensor
    rows_per_chunk = max(1, CHUNK_BYTES // max(1, rows[0].numel() * compute.itemsize))
    for chunk in rows.split(rows_per_chunk):
        yield chunk.to(compute).contiguous()


def _require_finite(chunk: Tensor, name: str) -> None:
    if not torch.isfinite(chunk).all():
        raise CheckpointError(
            "A weight is not finite.",
            where=name,
            expected=f"numbers that {str(chunk.dtype).removeprefix('torch.')} can hold",
            found="NaN or infinity after the cast",
            fix="check the checkpoint's file; if it is sound, build with --precision bf16 or fp32",
        )


def _write(file: BinaryIO, chunk: Tensor) -> None:
    file.write(memoryview(chunk.view(torch.uint8).flatten().numpy()))
