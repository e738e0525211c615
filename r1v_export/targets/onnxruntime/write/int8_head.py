"""The language-model head in 8 bits, where a CPU rounds inputs of 4-bit weights to 8 bits.

Shape letters: E hidden size, V vocabulary, G groups of E.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from r1v_export import contract
from r1v_export.exporters.graph_values import graph_of, is_initializer, name_of, size_of
from r1v_export.targets.onnxruntime.head_file import HEAD_DATA, group_size, scales_at
from r1v_export.targets.onnxruntime.lower.pattern import maker

_LEVELS = 127
_COLUMNS = 16_384
"""Of a group that are rounded at a time, so that they stay in a core's cache."""


def round_head(model: ir.Model, bundle: Path, engine: Path, location: str) -> bool:
    """Let the decoder's head have weights of 8 bits, rounded to nearest in groups of inputs, in a file of the engine.

    A float32 head is the largest part of what a token reads: three quarters at 0.5B. ONNX Runtime multiplies 8-bit
    weights with inputs that it rounds to 8 bits, as it does those of 4-bit weights in such an engine. A head that the
    recipe quantized, or whose inputs no group size divides, stays as it is.

    Args:
        model: the lowered decoder, changed in place; its weights' locations are relative to `bundle`.
        engine: folder for `HEAD_DATA`.
        location: of `HEAD_DATA`, relative to the bundle.

    Returns:
        Whether the head was rounded.
    """
    product = _float_head(model)
    if product is None:
        return False
    weight_EV = _content(product.weight, bundle)
    _write(weight_EV, product.group, engine / HEAD_DATA)
    _take(product, location)
    return True


def take_rounded_head(model: ir.Model, location: str) -> None:
    """Let another form of the decoder have the head that `round_head` wrote, where it wrote one.

    Args:
        model: changed in place.
        location: of `HEAD_DATA`, relative to what those of the model's weights are.
    """
    if (product := _float_head(model)) is not None:
        _take(product, location)


class _FloatHead(NamedTuple):
    """The product of the head, and its weight [E, V], whose inputs can be in groups."""

    matmul: ir.Node
    weight: ir.Value
    group: int


def _float_head(model: ir.Model) -> _FloatHead | None:
    logits = next(value for value in model.graph.outputs if value.name == contract.LOGITS)
    matmul = maker(logits, "MatMul")
    weight = None if matmul is None else matmul.inputs[1]
    if matmul is None or weight is None or not is_initializer(weight) or weight.dtype != ir.DataType.FLOAT:
        return None
    group = group_size(size_of(weight, 0))
    return None if group is None else _FloatHead(matmul, weight, group)


def _take(head: _FloatHead, location: str) -> None:
    """Replace the weight by its rounded form in a file."""
    name, hidden, vocab = name_of(head.weight), size_of(head.weight, 0), size_of(head.weight, 1)
    qweight = _initializer(f"{name}/qweight", ir.DataType.INT8, (hidden, vocab), location, 0)
    groups = hidden // head.group
    scale = _initializer(f"{name}/scale", ir.DataType.FLOAT, (groups, vocab), location, scales_at(hidden, vocab))
    attributes = {"axis": 0, "block_size": head.group}
    dequantize = ir.node("DequantizeLinear", [qweight, scale], attributes, name=f"{name}/DequantizeLinear")
    result = dequantize.outputs[0]
    result.name, result.shape, result.type = dequantize.name, head.weight.shape, head.weight.type
    graph = graph_of(head.matmul)
    for value in (qweight, scale):
        graph.register_initializer(value)
    graph.insert_before(head.matmul, dequantize)
    head.matmul.replace_input_with(1, result)
    if not head.weight.uses():
        graph.initializers.pop(name)


def _content(weight: ir.Value, bundle: Path) -> np.ndarray:
    """A weight's float32 numbers, mapped where they are in a file."""
    tensor = weight.const_value
    assert tensor is not None
    if isinstance(tensor, ir.ExternalTensor):
        # Not by the tensor itself, which refuses a file that has other names, too.
        return np.memmap(bundle / tensor.location, np.float32, "r", tensor.offset or 0, tuple(tensor.shape.numpy()))
    content: np.ndarray = tensor.numpy()
    return content


def _write(weight_EV: np.ndarray, group: int, file: Path) -> None:
    """Round a weight in groups of its rows, and write it; one group is held at a time."""
    hidden, vocab = weight_EV.shape
    scale_GV = np.empty((hidden // group, vocab), np.float32)
    rounded_RV = np.empty((group, vocab), np.int8)
    with file.open("wb") as out:
        for scale_V, start in zip(scale_GV, range(0, hidden, group), strict=True):
            for first in range(0, vocab, _COLUMNS):
                columns = slice(first, first + _COLUMNS)
                part_RC = weight_EV[start : start + group, columns]
                scale_C = scale_V[columns]
                np.abs(part_RC).max(axis=0, out=scale_C)
                scale_C /= _LEVELS
                scale_C[scale_C == 0] = 1  # a group of zeros is zeros at any scale
                np.rint(part_RC / scale_C, out=rounded_RV[:, columns], casting="unsafe")
            out.write(rounded_RV.data)
        out.seek(scales_at(hidden, vocab))
        out.write(scale_GV.data)


def _initializer(name: str, dtype: ir.DataType, shape: tuple[int, int], location: str, offset: int) -> ir.Value:
    length = shape[0] * shape[1] * dtype.itemsize
    tensor = ir.ExternalTensor(location, offset, int(length), dtype, shape=ir.Shape(shape), name=name)
    return ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(dtype), const_value=tensor)
