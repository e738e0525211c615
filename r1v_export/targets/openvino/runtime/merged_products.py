"""Small products of one value and 4-bit weights, computed as one product of all their columns.

Of one row, a product takes OpenVINO some 30 us however few weights it has, which is most of what keys' and values'
projections take in models with few key-value heads. Every column is what it was, bit for bit.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from r1v_export.targets.openvino.library import ov

SMALL_BYTES = 512 << 10
"""Of a product's weights: larger ones take longer than what is saved, and a copy of them more memory."""
_DEQUANTIZED = ("Reshape", "Multiply", "Convert", "Reshape", "Constant")
"""What OpenVINO makes of a DequantizeLinear in groups: from its result to the 4-bit weights."""
_OF_ONE_SHAPE = ("Reshape", "Unsqueeze")
"""What scales go through, which changes none."""


class _Product(NamedTuple):
    """A product of a value and 4-bit weights, and its bias."""

    value: ov.Output
    weights: ov.Node
    """Constant [in, out] of 4-bit integers."""
    grouped: tuple[int, int]
    """Groups of inputs that share a scale, and inputs of each."""
    scales: ov.Node
    """Constant [groups, out]."""
    bias: ov.Node | None
    """Constant [out]."""
    result: ov.Output

    @property
    def columns(self) -> int:
        return int(self.weights.get_output_shape(0)[1])


def merge_small_products(model: ov.Model) -> list[np.ndarray]:
    """Let small products of one value be one product, and its parts.

    Returns:
        What the new constants are in, to be kept as long as the model and what is compiled of it.
    """
    of_value: defaultdict[tuple[Any, ...], list[_Product]] = defaultdict(list)
    for node in model.get_ordered_ops():
        if (product := _small_product(node)) is not None:
            value, has_bias = product.value, product.bias is not None
            of_value[value.node.friendly_name, value.get_index(), product.grouped, has_bias].append(product)
    made = [array for products in of_value.values() if len(products) > 1 for array in _merge(products)]
    model.validate_nodes_and_infer_types()
    return made


def _small_product(node: ov.Node) -> _Product | None:
    """What a node multiplies, if that are few weights in 4 bits."""
    if node.get_type_name() != "MatMul" or any(node.get_attributes().values()):  # it transposes an operand
        return None
    path = list(_upwards(node.input_value(1).node))
    if tuple(each.get_type_name() for each in path) != _DEQUANTIZED:
        return None
    _, scaled, _, grouped, weights = path
    scales = _constant(scaled.input_value(1).node)
    if weights.get_element_type() != ov.Type.i4 or scales is None or weights.get_byte_size() >= SMALL_BYTES:
        return None
    groups, inputs, columns = grouped.get_output_shape(0)
    if columns % 2:  # the last column of a row shares a byte with the first one of the next
        return None
    bias, result = _bias(node)
    return _Product(node.input_value(0), weights, (groups, inputs), scales, bias, result)


def _upwards(node: ov.Node) -> Sequence[ov.Node]:
    """A node, its first operand, that one's first, and so on."""
    path = [node]
    while path[-1].get_input_size():
        path.append(path[-1].input_value(0).node)
    return path


def _constant(node: ov.Node) -> ov.Node | None:
    """The constant that a node has the values of."""
    while node.get_type_name() in _OF_ONE_SHAPE:
        node = node.input_value(0).node
    return node if node.get_type_name() == "Constant" else None


def _bias(product: ov.Node) -> tuple[ov.Node | None, ov.Output]:
    """The constant that is added to a product before anything else reads it, and the sum; or none, and the product."""
    readers = [each.get_node() for each in product.output(0).get_target_inputs()]
    if len(readers) == 1 and readers[0].get_type_name() == "Add":
        for operand in readers[0].input_values():
            if (bias := _constant(operand.node)) is not None:
                return bias, readers[0].output(0)
    return None, product.output(0)


def _merge(products: Sequence[_Product]) -> tuple[np.ndarray, np.ndarray]:
    """Replace products by parts of one, and return its weights and scales."""
    ops: Any = ov.opset13
    groups, inputs = products[0].grouped
    columns = [each.columns for each in products]
    # Two columns of a row share a byte.
    weights = np.concatenate([each.weights.data.reshape(groups * inputs, -1) for each in products], axis=1)
    scales = np.concatenate([each.scales.data.reshape(groups, 1, -1) for each in products], axis=2)
    tensor = ov.Tensor(weights, ov.Shape([groups * inputs, sum(columns)]), ov.Type.i4)
    grouped = ops.reshape(ov.op.Constant(tensor, shared_memory=True), [groups, inputs, sum(columns)], False)
    scaled = ops.multiply(ops.convert(grouped, "f32"), ov.op.Constant(ov.Tensor(scales, True), shared_memory=True))
    result = ops.matmul(products[0].value, ops.reshape(scaled, [groups * inputs, sum(columns)], False), False, False)
    biases = [each.bias.data.reshape(-1) for each in products if each.bias is not None]
    if biases:
        result = ops.add(result, ops.constant(np.concatenate(biases)))
    parts = ops.variadic_split(result, ops.constant(-1), ops.constant(columns))
    for product, part in zip(products, parts.outputs(), strict=True):
        product.result.replace(part)
    return weights, scales
