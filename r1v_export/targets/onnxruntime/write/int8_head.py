"""The language-model head in 8 bits, where a CPU rounds inputs of 4-bit weights to 8 bits.

Shape letters: E hidden size, V vocabulary, G groups of E.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from r1v_export import contract
from r1v_export.exporters.graph_values import graph_of, is_initializer, maker, name_of, size_of
from r1v_export.targets.onnxruntime.head_file import HEAD_DATA, group_size, scales_at
from r1v_export.targets.onnxruntime.write.rounded_weights import content_of, in_file, write_rounded


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
    weight_EV = content_of(product.weight, bundle)
    with (engine / HEAD_DATA).open("wb") as out:
        scale_GV = write_rounded(weight_EV, product.group, np.int8(0), out)
        out.seek(scales_at(*weight_EV.shape))
        out.write(scale_GV.data)
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
    qweight = in_file(f"{name}/qweight", ir.DataType.INT8, (hidden, vocab), location, 0)
    groups = hidden // head.group
    scale = in_file(f"{name}/scale", ir.DataType.FLOAT, (groups, vocab), location, scales_at(hidden, vocab))
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
