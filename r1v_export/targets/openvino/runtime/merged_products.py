"""Small products of one value and 4-bit weights, computed as one product of all their columns.

Of one row, a product takes OpenVINO some 30 us however few weights it has, which is most of what keys' and values'
projections take in models with few key-value heads. Where inputs are rounded to 8 bits every column is what it was, bit
for bit: its sum is not cut by how many columns there are.
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
_KEEP_VALUES = ("Reshape", "Unsqueeze")


class _Product(NamedTuple):
    """A product of a value and 4-bit weights, and its bias."""

    value: ov.Output
    weights: ov.Node
    """Constant [in, out] of 4-bit integers."""
    groups: int
    """Of inputs, that share a scale."""
    scales: ov.Node
    """Constant of groups * out float32."""
    bias: ov.Node | None
    """Constant of out float32."""
    result: ov.Output

    @property
    def columns(self) -> int:
        return int(self.weights.get_output_shape(0)[1])


def merge_small_products(model: ov.Model) -> list[np.ndarray]:
    """Make one product of small ones that read the same value, and give each reader its columns of it.

    Returns:
        What the new constants are in, to be kept as long as the model and what is compiled of it.
    """
    of_value: defaultdict[tuple[Any, ...], list[_Product]] = defaultdict(list)
    for node in model.get_ordered_ops():
        if (product := _small_product(node)) is not None:
            value, has_bias = product.value, product.bias is not None
            of_value[value.node.get_name(), value.get_index(), product.groups, has_bias].append(product)
    made = [array for products in of_value.values() if len(products) > 1 for array in _merge(products)]
    model.validate_nodes_and_infer_types()
    return made


def _small_product(node: ov.Node) -> _Product | None:
    """The product of a node, if its weights are few and in 4 bits."""
    if node.get_type_name() != "MatMul" or _transposes(node):
        return None
    path = _upwards(node.input_value(1).node, len(_DEQUANTIZED))
    if tuple(each.get_type_name() for each in path) != _DEQUANTIZED:
        return None
    _, scaled, _, grouped, weights = path
    shape, grouped_shape = list(weights.get_output_shape(0)), list(grouped.get_output_shape(0))
    if weights.get_element_type() != ov.Type.i4 or len(shape) != 2 or weights.get_byte_size() >= SMALL_BYTES:
        return None
    inputs, columns = shape
    groups = grouped_shape[0]
    scales = _constant(scaled.input_value(1).node, groups * columns)
    # A byte holds two columns of a row, so that rows can be joined where each has whole bytes.
    if columns % 2 or grouped_shape != [groups, inputs // groups, columns] or scales is None:
        return None
    return _Product(node.input_value(0), weights, groups, scales, *_bias(node, columns))


def _transposes(product: ov.Node) -> bool:
    attributes = product.get_attributes()
    return bool(attributes["transpose_a"] or attributes["transpose_b"])


def _upwards(node: ov.Node, count: int) -> list[ov.Node]:
    """A node, its first operand, that one's first, and so on, up to so many."""
    path = [node]
    while len(path) < count and path[-1].get_input_size():
        path.append(path[-1].input_value(0).node)
    return path


def _constant(node: ov.Node, size: int) -> ov.Node | None:
    """The constant of so many float32 that a node has the values of."""
    while node.get_type_name() in _KEEP_VALUES:
        node = node.input_value(0).node
    is_one = node.get_type_name() == "Constant" and node.get_element_type() == ov.Type.f32
    return node if is_one and np.prod(node.get_output_shape(0)) == size else None


def _bias(product: ov.Node, columns: int) -> tuple[ov.Node | None, ov.Output]:
    """The constant that is added to a product before anything else reads it, and the sum; or none, and the product."""
    readers = [each.get_node() for each in product.output(0).get_target_inputs()]
    if len(readers) == 1 and readers[0].get_type_name() == "Add":
        for operand in readers[0].input_values():
            if (bias := _constant(operand.node, columns)) is not None:
                return bias, readers[0].output(0)
    return None, product.output(0)


def _merge(products: Sequence[_Product]) -> tuple[np.ndarray, np.ndarray]:
    """Replace products by parts of one, and return its weights and scales."""
    ops: Any = ov.opset13
    groups, inputs = products[0].groups, products[0].weights.get_output_shape(0)[0]
    columns = [each.columns for each in products]
    weights = np.concatenate([each.weights.data.reshape(inputs, -1) for each in products], axis=1)
    scales = np.concatenate([each.scales.data.reshape(groups, 1, -1) for each in products], axis=2)
    tensor = ov.Tensor(weights, ov.Shape([inputs, sum(columns)]), ov.Type.i4)
    constant = ov.op.Constant(tensor, shared_memory=True)
    constant.friendly_name = "+".join(each.weights.friendly_name for each in products)
    grouped = ops.reshape(constant, [groups, inputs // groups, sum(columns)], False)
    scaled = ops.multiply(ops.convert(grouped, "f32"), ov.op.Constant(ov.Tensor(scales, True), shared_memory=True))
    result = ops.matmul(products[0].value, ops.reshape(scaled, [inputs, sum(columns)], False), False, False)
    biases = [each.bias.data.reshape(-1) for each in products if each.bias is not None]
    if biases:
        result = ops.add(result, ops.constant(np.concatenate(biases)))
    result.friendly_name = "+".join(each.result.node.friendly_name for each in products)
    parts = ops.variadic_split(result, ops.constant(-1), ops.constant(columns))
    for product, part in zip(products, parts.outputs(), strict=True):
        product.result.replace(part)
    return weights, scales
