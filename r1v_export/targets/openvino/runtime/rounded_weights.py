"""Weights of products in bfloat16, rounded once and laid out as OpenVINO multiplies them.

From float32 constants OpenVINO makes a transposed float32 copy of each matrix, keeps it as long as the graph is open,
and makes another one in bfloat16 when it first runs: of InternViT-300M 1.2 GB and 0.6 GB. Given what it will multiply,
it needs the last one alone, and compiles faster.
"""

from __future__ import annotations

import mmap
from typing import Any

import numpy as np

from r1v_export.targets.openvino.library import ov

_AT_ONCE = 1 << 22
"""Elements that are rounded together, which bounds what rounding takes."""


def multiply_in_bfloat16(parameter: ov.op.Parameter, weight: np.ndarray) -> np.ndarray | None:
    """Let the product that a graph's input is a weight of have a bfloat16 constant instead.

    Args:
        parameter: the input, which then has no use in the graph.
        weight: [in, out] float32.

    Returns:
        The constant's content, to be kept as long as the graph; None, and nothing changed, where the input is not the
        second operand of one product alone.
    """
    users = [target.get_node() for target in parameter.output(0).get_target_inputs()]
    if weight.ndim != 2 or len(users) != 1 or not _is_product_of(users[0], parameter):
        return None
    product = users[0]
    content = rounded(weight)
    out, inner = content.shape
    constant = ov.op.Constant(ov.Tensor(content.reshape(-1).view(np.uint8), ov.Shape([out, inner]), ov.Type.bf16), True)
    constant.friendly_name = parameter.friendly_name
    ops: Any = ov.opset13
    x = ops.convert(product.input_value(0), "bf16")
    y = ops.convert(ops.matmul(x, constant, False, True), "f32")
    y.friendly_name = product.friendly_name
    product.output(0).replace(y.output(0))
    return content


def _is_product_of(node: ov.Node, weight: ov.Node) -> bool:
    if node.get_type_name() != "MatMul" or node.input_value(1).get_node().friendly_name != weight.friendly_name:
        return False
    attributes = node.get_attributes()
    return not (attributes["transpose_a"] or attributes["transpose_b"])


def rounded(weight: np.ndarray) -> np.ndarray:
    """A matrix [in, out] in bfloat16 and transposed: the upper halves of its float32 values, to nearest and, in the
    middle, to even; uint16 [out, in]."""
    inner, out = weight.shape
    content = np.empty((out, inner), np.uint16)
    step = max(1, _AT_ONCE // out)
    for start in range(0, inner, step):
        bits = weight[start : start + step].view(np.uint32)
        nearest = (bits + (0x7FFF + ((bits >> 16) & 1))) >> 16
        content[:, start : start + step] = nearest.astype(np.uint16).T
    return content


def forget_pages(content: np.ndarray) -> None:
    """Let the pages of a mapped file go, which come back from the file where they are read again.

    Args:
        content: [bytes] uint8, or a part of them; nothing happens to an array that is no mapped file.
    """
    base: Any = content
    while isinstance(base, np.ndarray):
        base = base.base
    mapped = base.obj if isinstance(base, memoryview) else base
    if isinstance(mapped, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        mapped.madvise(mmap.MADV_DONTNEED)
