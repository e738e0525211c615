"""Weights of products in bfloat16 or in 8 bits, rounded once and laid out as OpenVINO multiplies them.

From float32 constants OpenVINO makes a transposed float32 copy of each matrix, keeps it as long as the graph is open,
and makes another one in bfloat16 when it first runs: of InternViT-300M 1.2 GB and 0.6 GB. Given what it will multiply,
it needs the last one alone, and compiles faster.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np

from r1v_export.targets.openvino.library import ov
from r1v_export.targets.openvino.runtime.kept_weights import Keep, make_anew
from r1v_export.targets.openvino.runtime.rounded_activations import be_bfloat16

_STEPS = 127
"""From zero to the largest of an input's features where they are rounded to 8 bits."""
_LEAST_SCALE = 1e-30
"""Of inputs that are all zero, which cannot be divided by their largest value."""
_AT_ONCE = 1 << 22
"""Elements that are rounded together, which bounds what rounding takes."""


class Multiply(Protocol):
    """`multiply_in_bfloat16` or `multiply_in_int8`."""

    def __call__(self, parameter: ov.op.Parameter, weight: np.ndarray, keep: Keep = ...) -> np.ndarray | None: ...


def multiply_in_bfloat16(parameter: ov.op.Parameter, weight: np.ndarray, keep: Keep = make_anew) -> np.ndarray | None:
    """Let the product that a graph's input is a weight of have a bfloat16 constant instead.

    Args:
        parameter: the input, which then has no use in the graph.
        weight: [in, out] float32.
        keep: gives what it is rounded to, by the parameter's name.

    Returns:
        The constant's content, to be kept as long as the graph; None, and nothing changed, where the input is not the
        second operand of one product alone.
    """
    product = _product_of(parameter, weight)
    if product is None:
        return None
    (content,) = keep(parameter.friendly_name, lambda: [rounded(weight)])
    constant = _constant(parameter, content, ov.Type.bf16)
    ops: Any = ov.opset13
    x = ops.convert(product.input_value(0), "bf16")
    _replace(product, ops.convert(ops.matmul(x, constant, False, True), "f32"))
    return content


def multiply_in_int8(parameter: ov.op.Parameter, weight: np.ndarray, keep: Keep = make_anew) -> np.ndarray | None:
    """Likewise with operands in 8 bits: weights per output channel, inputs per token.

    Inputs are divided by their largest value and go through a FakeQuantize of fixed limits, which is what OpenVINO
    takes for products of integers: with AMX and VNNI they are the fastest that it has. With its own rounding of inputs
    (`DYNAMIC_QUANTIZATION_GROUP_SIZE`) InternViT-300M takes 1.5 times as long with AMX, three times with VNNI.

    Args:
        parameter: the input, which then has no use in the graph.
        weight: [in, out] float32.
        keep: gives what it is rounded to, and the scales, by the parameter's name.

    Returns:
        As `multiply_in_bfloat16` does.
    """
    product = _product_of(parameter, weight)
    if product is None:
        return None
    content, scales = keep(parameter.friendly_name, lambda: rounded_to_int8(weight))
    constant = _constant(parameter, content, ov.Type.i8)
    ops: Any = ov.opset13
    # Constants of another form, such as u8 with a zero point, are widened before each product instead.
    widened = ops.multiply(ops.convert(constant, "f32"), ops.constant(scales[:, None]))
    x, features = product.input_value(0), ops.constant([-1])
    # Two readings of the inputs take less than the absolute values that one would have to write.
    largest, least = (be_bfloat16(find(x, features, keep_dims=True)) for find in (ops.reduce_max, ops.reduce_min))
    absolute = be_bfloat16(ops.maximum(largest, be_bfloat16(ops.negative(least))))
    scale = be_bfloat16(ops.maximum(absolute, ops.constant(np.float32(_LEAST_SCALE))))
    limits = ops.constant(np.float32(-1)), ops.constant(np.float32(1))
    scaled = be_bfloat16(ops.divide(x, scale))
    quantized = be_bfloat16(ops.fake_quantize(scaled, *limits, *limits, 2 * _STEPS + 1))
    _replace(product, ops.multiply(ops.matmul(quantized, widened, False, True), scale))
    return content


def _product_of(parameter: ov.op.Parameter, weight: np.ndarray) -> ov.Node | None:
    """The one product that a matrix is the second operand of."""
    users = [target.get_node() for target in parameter.output(0).get_target_inputs()]
    return users[0] if weight.ndim == 2 and len(users) == 1 and _is_product_of(users[0], parameter) else None


def _constant(parameter: ov.op.Parameter, content: np.ndarray, dtype: ov.Type) -> ov.op.Constant:
    """A matrix that is not copied, by the name of the weight that it is."""
    tensor = ov.Tensor(content.reshape(-1).view(np.uint8), ov.Shape(content.shape), dtype)
    constant = ov.op.Constant(tensor, True)
    constant.friendly_name = parameter.friendly_name
    return constant


def _replace(product: ov.Node, by: ov.Node) -> None:
    by.friendly_name = product.friendly_name
    product.output(0).replace(by.output(0))


def _is_product_of(node: ov.Node, weight: ov.Node) -> bool:
    if node.get_type_name() != "MatMul" or node.input_value(1).get_node().friendly_name != weight.friendly_name:
        return False
    attributes = node.get_attributes()
    return not (attributes["transpose_a"] or attributes["transpose_b"])


def rounded(weight: np.ndarray) -> np.ndarray:
    """A matrix [in, out] in bfloat16 and transposed: the upper halves of its float32 values, to nearest and, in the
    middle, to even; uint16 [out, in]."""
    content = np.empty(weight.shape[::-1], np.uint16)
    for rows in _parts(weight):
        bits = weight[rows].view(np.uint32)
        nearest = (bits + (0x7FFF + ((bits >> 16) & 1))) >> 16
        content[:, rows] = nearest.astype(np.uint16).T
    return content


def rounded_to_int8(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A matrix [in, out] in 8 bits and transposed, to nearest and, in the middle, to even.

    Returns:
        int8 [out, in], the largest of each output feature 127 or -127; and their scales, float32 [out].
    """
    content = np.empty(weight.shape[::-1], np.int8)
    largest = np.zeros(weight.shape[1], np.float32)
    for rows in _parts(weight):
        np.maximum(largest, np.abs(weight[rows]).max(axis=0), out=largest)
    scales = np.where(largest > 0, largest / np.float32(_STEPS), np.float32(1))
    for rows in _parts(weight):
        content[:, rows] = np.clip(np.rint(weight[rows] / scales), -_STEPS, _STEPS).astype(np.int8).T
    return content, scales


def _parts(weight: np.ndarray) -> Iterator[slice]:
    """Rows of a matrix that are rounded together."""
    step = max(1, _AT_ONCE // weight.shape[1])
    return (slice(start, start + step) for start in range(0, len(weight), step))
