"""Matrices in 8 bits, as an engine's own files hold them.

Shape letters: I input features, O output features, G groups of I.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import BinaryIO

import numpy as np
import onnx_ir as ir

from r1v_export.exporters.graph_values import name_of
from r1v_export.targets.onnxruntime.head_file import PAGE_BYTES
from r1v_export.targets.onnxruntime.rounding import LEVELS, MIDDLE

_AT_ONCE = 1 << 21
"""Elements that are rounded together, which bounds what rounding takes."""


def content_of(weight: ir.Value, bundle: Path) -> np.ndarray:
    """A weight's float32 numbers, mapped where they are in a file."""
    tensor = weight.const_value
    assert tensor is not None
    if isinstance(tensor, ir.ExternalTensor):
        # Not by the tensor itself, which refuses a file that has other names, too.
        return np.memmap(bundle / tensor.location, np.float32, "r", tensor.offset or 0, tuple(tensor.shape.numpy()))
    content: np.ndarray = tensor.numpy()
    return content


def write_rounded(weight_IO: np.ndarray, group: int, zero: np.int8 | np.uint8, out: BinaryIO) -> np.ndarray:
    """Round a matrix to nearest in groups of its input features, and write it; one group is held at a time.

    Args:
        weight_IO: float32.
        group: a divisor of I.
        zero: what stands for 0, of the type to write; every other value is as far from it.

    Returns:
        The scales, float32 [G, O].
    """
    inputs, outputs = weight_IO.shape
    scale_GO = np.empty((inputs // group, outputs), np.float32)
    rounded_RO = np.empty((group, outputs), zero.dtype)
    step = max(1, _AT_ONCE // group)
    for scale_O, start in zip(scale_GO, range(0, inputs, group), strict=True):
        for first in range(0, outputs, step):
            columns = slice(first, first + step)
            part_RC = weight_IO[start : start + group, columns]
            scale_C = scale_O[columns]
            np.abs(part_RC).max(axis=0, out=scale_C)
            scale_C /= LEVELS
            scale_C[scale_C == 0] = 1  # a group of zeros is zeros at any scale
            nearest_RC = np.rint(part_RC / scale_C)
            nearest_RC += zero
            rounded_RO[:, columns] = nearest_RC
        out.write(rounded_RO.data)
    return scale_GO


def in_file(name: str, dtype: ir.DataType, shape: tuple[int, ...], location: str, offset: int) -> ir.Value:
    """An initializer whose content is in a file.

    Args:
        location: of the file, relative to what those of the graph's weights are.
        offset: in bytes.
    """
    length = int(math.prod(shape) * dtype.itemsize)
    tensor = ir.ExternalTensor(location, offset, length, dtype, shape=ir.Shape(shape), name=name)
    return ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(dtype), const_value=tensor)


def append_rounded(weight: ir.Value, bundle: Path, file: BinaryIO, location: str) -> tuple[ir.Value, ir.Value]:
    """Write a weight [I, O] at a file's end, UINT8 around 128 and with a scale for each output feature.

    Args:
        weight: an initializer, its location relative to `bundle`.
        location: of the file, relative to the bundle.

    Returns:
        Initializers: the rounded weight [I, O], and the scales [O].
    """
    content_IO = content_of(weight, bundle)
    file.write(bytes(-file.tell() % PAGE_BYTES))
    offset = file.tell()
    (scale_O,) = write_rounded(content_IO, len(content_IO), np.uint8(MIDDLE), file)
    file.write(bytes(-file.tell() % scale_O.itemsize))
    scales_at = file.tell()
    file.write(scale_O.data)
    name = name_of(weight)
    qweight = in_file(f"{name}/qweight", ir.DataType.UINT8, content_IO.shape, location, offset)
    return qweight, in_file(f"{name}/scale", ir.DataType.FLOAT, scale_O.shape, location, scales_at)
