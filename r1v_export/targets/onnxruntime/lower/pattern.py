"""Finding and replacing the few shapes of subgraph that our own exporters write."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from r1v_export.exporters.graph_values import graph_of, input_of, is_initializer, producer, shape_of

MICROSOFT = "com.microsoft"
"""Domain of ONNX Runtime's contrib operators."""


def is_weight(dequantize: ir.Node, dtype: ir.DataType) -> bool:
    """Whether a DequantizeLinear makes a weight [in, out] of constants of this type, without a zero point, with a scale
    for each output channel or one for all."""
    qweight, scale = input_of(dequantize, 0), input_of(dequantize, 1)
    axis = dequantize.attributes.get_int("axis", 1)
    return (
        is_initializer(qweight)
        and is_initializer(scale)
        and qweight.dtype == dtype
        and len(dequantize.inputs) == 2
        and shape_of(qweight).rank() == 2
        and (shape_of(scale).rank() == 0 or (shape_of(scale).rank() == 1 and axis in (1, -1)))
    )


def constant(graph: ir.Graph, name: str, content: np.generic | np.ndarray) -> ir.Value:
    """A new initializer of a graph."""
    tensor = ir.tensor(content, name=name)
    value = ir.Value(name=name, const_value=tensor, shape=ir.Shape(content.shape), type=ir.TensorType(tensor.dtype))
    graph.register_initializer(value)
    return value


def replace_node(old: ir.Node, new: ir.Node, results: Sequence[ir.Value | None]) -> None:
    """Put `new` in the place of `old`; its outputs take over name, type and uses of `results`.

    The nodes that made the results so far are left for `RemoveUnusedNodesPass`.
    """
    new.name = old.name
    graph_of(old).insert_after(old, new)
    for output, result in zip(new.outputs, results, strict=True):
        if result is None:
            continue
        output.shape, output.type, output.name = result.shape, result.type, result.name
        result.name = f"{result.name}/replaced"
        ir.convenience.replace_all_uses_with(result, output, replace_graph_outputs=True)


def before_heads(heads_BHSD: ir.Value | None) -> ir.Value:
    """The [batch, seq, heads * head_dim] value that was split into heads."""
    transpose = producer(heads_BHSD, "Transpose")
    return input_of(producer(transpose.inputs[0], "Reshape"), 0)


def after_heads(attended_BHSD: ir.Value) -> ir.Value:
    """The [batch, seq, heads * head_dim] value that the heads of attention's result are merged into."""
    (transpose,) = attended_BHSD.consumers()
    (reshape,) = transpose.outputs[0].consumers()
    return reshape.outputs[0]
