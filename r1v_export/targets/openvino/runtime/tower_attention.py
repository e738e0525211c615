"""Attention of a tower as products, whose transposed operands OpenVINO's fused kernel takes as they are.

By itself OpenVINO makes the same of its operator for attention, but transposes keys, and what comes out, in operators
of their own: a tenth of the time of InternViT-300M's attention.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from r1v_export.targets.openvino.library import ov

_TILE_KEYS = 32
"""Tiles of bfloat16 take so many keys. A tower has one token more than it has patches: with its 1,025 keys attention of
InternViT-300M's shape takes 1.25 times as long as with 1,056, of InternViT-6B's 1.15 times; without tiles as long."""
_MOST_ADDED = 1 / 16
"""Of the keys that are there: no more are added."""
_HIDDEN = np.float32(-1e9)
"""A score whose weight is 0."""


def attend_by_products(model: ov.Model, *, by_tiles: bool = False) -> None:
    """Let attention of all to all, without a mask, be two products and a softmax; other attention stays.

    Args:
        by_tiles: whether the products are computed by tiles of bfloat16. Keys that no token sees then fill the last
            tile up.
    """
    for node in model.get_ordered_ops():
        if node.get_type_name() == "ScaledDotProductAttention" and _is_plain(node):
            node.output(0).replace(_attended(node, _TILE_KEYS if by_tiles else 1))


def _is_plain(node: ov.Node) -> bool:
    """Whether each query head has keys of its own, in shapes that are known, and all tokens attend to all: a mask that
    is a number is added to every score, and changes no weights."""
    query, key, *mask = (
        node.input_value(index).get_partial_shape() for index in (0, 1, *range(3, node.get_input_size()))
    )
    known = query.rank == key.rank == ov.Dimension(4) and all(
        each[1].is_static and each[3].is_static for each in (query, key)
    )
    hides = node.get_attributes()["causal"] or len(mask) > 1 or any(each.rank != ov.Dimension(0) for each in mask)
    return known and not hides and query[1] == key[1]


def _attended(node: ov.Node, multiple: int) -> ov.Output:
    """What an operator for attention gives.

    Args:
        multiple: the number of keys becomes one of it.
    """
    ops: Any = ov.opset13
    query, key, value = (node.input_value(index) for index in range(3))
    scale = np.float32(query.get_partial_shape()[3].get_length() ** -0.5)
    added = _keys_to_add(key, multiple)
    if added:
        key, value = _longer(key, added), _longer(value, added)
    scores = ops.matmul(ops.multiply(query, ops.constant(scale)), key, False, True)
    if added:
        scores = ops.add(scores, ops.constant(_mask(key, added)))
    attended = ops.matmul(ops.softmax(scores, -1), value, False, False)
    attended.friendly_name = node.friendly_name
    result: ov.Output = attended.output(0)
    return result


def _mask(key: ov.Output, added: int) -> np.ndarray:
    """What hides the last of the keys [batch, heads, keys, head_dim], [1, heads, 1, keys] float32.

    One for all heads is taken for a bias of the product, which openvino 2026.4.1 adds wrongly in bfloat16.
    """
    heads, keys = (key.get_partial_shape()[axis].get_length() for axis in (1, 2))
    mask = np.zeros((1, heads, 1, keys), np.float32)
    mask[..., keys - added :] = _HIDDEN
    return mask


def _keys_to_add(key: ov.Output, multiple: int) -> int:
    heads, tokens = (key.get_partial_shape()[axis] for axis in (1, 2))
    if tokens.is_dynamic or heads.get_length() == 1:  # one head has a mask that is wrong, see `_mask`
        return 0
    missing: int = -tokens.get_length() % multiple
    return missing if missing <= _MOST_ADDED * tokens.get_length() else 0


def _longer(values: ov.Output, added: int) -> ov.Output:
    """Keys or values [batch, heads, tokens, head_dim] with so many tokens of zeros behind them.

    They are added before a transposition, which then is still a part of the product.
    """
    ops: Any = ov.opset13
    node = values.get_node()
    if node.get_type_name() != "Transpose":
        return _padded(values, 2, added)
    order = node.input_value(1)
    axis = int(order.get_node().data[2])
    result: ov.Output = ops.transpose(_padded(node.input_value(0), axis, added), order).output(0)
    return result


def _padded(values: ov.Output, axis: int, added: int) -> ov.Output:
    ops: Any = ov.opset13
    ends = np.zeros(4, np.int64)
    ends[axis] = added
    zero = ops.constant(np.float32(0))
    result: ov.Output = ops.pad(
        values, ops.constant(np.zeros(4, np.int64)), ops.constant(ends), "constant", zero
    ).output(0)
    return result
