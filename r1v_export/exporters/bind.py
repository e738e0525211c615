"""Binding: a traced graph's initializers become lazily read checkpoint tensors, streamed to external data."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import onnx_ir as ir
import torch
from torch import Tensor

from r1v_export.checkpoint.quantized.int4_packing import pack_pairs
from r1v_export.errors import CheckpointError
from r1v_export.exporters.graph import Derived, Read
from r1v_export.exporters.graph_values import dtype_of, name_of, shape_of
from r1v_export.exporters.passes.transposed_weights import TRANSPOSED
from r1v_export.hashed_files import open_hashed
from r1v_export.progress import ProgressCallback, ignore_progress

ALIGNMENT_BYTES = 4096
"""Every tensor starts on a page, so that engines can map the file."""

CHUNK_BYTES = 64 << 20
"""Weights are cast and transposed this much at a time."""

DTYPES = {torch.float32: ir.DataType.FLOAT, torch.float16: ir.DataType.FLOAT16, torch.bfloat16: ir.DataType.BFLOAT16}
"""Types that graphs compute in."""

_TORCH_DTYPES = {onnx_dtype: torch_dtype for torch_dtype, onnx_dtype in DTYPES.items()} | {
    ir.DataType.FLOAT8E4M3FN: torch.float8_e4m3fn,
    ir.DataType.INT8: torch.int8,
    ir.DataType.INT32: torch.int32,
    ir.DataType.INT4: torch.int8,
    ir.DataType.UINT4: torch.int8,
}
"""How a chunk of each type is held in memory; 4-bit values are packed when they are written."""


def save_with_weights(
    model: ir.Model,
    derived: Mapping[str, Derived],
    read: Read,
    path: Path,
    on_progress: ProgressCallback = ignore_progress,
) -> None:
    """Write `path` (the graph) and its `.data` (the weights, in the order of the graph's initializers).

    Every unbound initializer is made by its entry of `derived`, or read under its own name, and cast to its type in
    the graph: one tensor at a time is held, cast in chunks. `on_progress` is called after every chunk, with bytes.
    """
    data_path = path.with_suffix(".data")
    total, written = weight_bytes(model), 0
    layout = _lay_out(model, data_path.name)
    ir.save(model, path)
    ends = [(external.offset or 0) + (external.length or 0) for external in layout]
    with open_hashed(data_path, ends) as file:
        for external, end in zip(layout, ends, strict=True):
            if end <= file.start:
                written += external.length or 0
                on_progress(written, total)
                continue
            file.write(b"\0" * ((external.offset or 0) - file.tell()))
            for chunk in _chunks(external, derived, read):
                file.write(chunk)
                written += len(chunk)
                on_progress(written, total)
            file.end_part()


def unbound(model: ir.Model) -> list[ir.Value]:
    """Initializers that wait for their checkpoint tensor."""
    return [value for value in model.graph.initializers.values() if value.const_value is None]


def weight_bytes(model: ir.Model) -> int:
    """Size of the weights that `save_with_weights` will write, in bytes, without alignment."""
    return sum(_bytes(value) for value in unbound(model))


def _bytes(value: ir.Value) -> int:
    return math.ceil(math.prod(shape_of(value).numpy()) * dtype_of(value).bitwidth / 8)


def _lay_out(model: ir.Model, location: str) -> list[ir.ExternalTensor]:
    layout, offset = [], 0
    for value in unbound(model):
        length, dtype = _bytes(value), dtype_of(value)
        external = ir.ExternalTensor(location, offset, length, dtype, shape=shape_of(value), name=name_of(value))
        value.const_value = external
        layout.append(external)
        offset = -(-(offset + length) // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
    return layout


def _chunks(external: ir.ExternalTensor, derived: Mapping[str, Derived], read: Read) -> Iterator[memoryview]:
    """The initializer's bytes in file order, a few rows at a time."""
    tensor = _content(external.name, derived, read)
    if tensor.shape != tuple(external.shape):
        raise CheckpointError(
            "A weight does not have the shape that the graph needs.",
            where=external.name,
            expected=list(external.shape),
            found=list(tensor.shape),
        )
    dtype = _TORCH_DTYPES[external.dtype]
    rows = tensor.reshape(1, -1) if tensor.dim() < 2 else tensor
    # An even number of rows, because rows of 4-bit values may be of an odd size.
    rows_per_chunk = 2 * max(1, CHUNK_BYTES // max(1, 2 * rows[0].numel() * dtype.itemsize))
    for rows_chunk in rows.split(rows_per_chunk):
        chunk = _in_order(rows_chunk, dtype)
        if external.dtype in DTYPES.values():
            _require_finite(chunk, external.name)
        # 4-bit types: two values a byte in row-major order, whatever the rows; none is left, for groups are even.
        packed = pack_pairs(chunk.view(-1, 2)) if external.dtype.bitwidth == 4 else chunk.view(torch.uint8)
        yield packed.flatten().numpy().data


def _in_order(rows: Tensor, dtype: torch.dtype) -> Tensor:
    """Rows in a type, one behind the other in memory.

    PyTorch transposes a whole matrix four times as fast as some rows of a transposed one, which are brought together
    first, as columns of what the checkpoint has.
    """
    if rows.dim() == 2 and rows.stride(0) == 1:
        return rows.t().to(dtype).contiguous().t().contiguous()
    return rows.to(dtype).contiguous()


def _content(name: str, derived: Mapping[str, Derived], read: Read) -> Tensor:
    if name in derived:
        return derived[name](read)
    if name.endswith(TRANSPOSED):
        return read(name.removesuffix(TRANSPOSED)).t()
    return read(name)


def _require_finite(chunk: Tensor, name: str) -> None:
    # A NaN or an infinity is an end of the range, found in one pass: masks of what is finite take thirty times as long.
    if chunk.numel() and not torch.stack(chunk.aminmax()).isfinite().all():
        raise CheckpointError(
            "A weight is not finite.",
            where=name,
            expected=f"numbers that {str(chunk.dtype).removeprefix('torch.')} can hold",
            found="NaN or infinity after the cast",
            fix="check the checkpoint's file; if it is sound, build with --precision bf16 or fp32",
        )
