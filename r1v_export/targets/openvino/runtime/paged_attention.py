"""OpenVINO's operator for attention over a pool of blocks, which its own server of language models is made of.

No front end makes it, and its Python class begins with an underscore: it may change with any version. So an engine with
it is opened where the operator computes what it should, and not otherwise.
"""

from __future__ import annotations

from functools import cache, partial
from typing import Any, NamedTuple

import numpy as np

from r1v_export import contract
from r1v_export.count import Count
from r1v_export.errors import CapabilityError
from r1v_export.targets.graph_errors import shortened
from r1v_export.targets.openvino.boundary import (
    BLOCK_INDICES_BEGINS,
    BLOCK_TABLE,
    DOMAIN,
    PAGED_ATTENTION,
    PAST_LENS,
    SUBSEQUENCE_BEGINS,
)
from r1v_export.targets.openvino.library import ov
from r1v_export.targets.openvino.signal_stack import kept_signal_stack

BLOCK = 32
"""Slots of a block on the CPU."""
_TOLERANCE = {"f32": 1e-4, "bf16": 3e-2}
"""How far results may be from those of float32, by what operands round to: keys, queries and weights have 8 bits in
bfloat16, and results are around 1."""


class Attention(NamedTuple):
    """How a graph attends. Each is f32 or bf16."""

    pools: str
    """What the pools hold, and the operator rounds its operands to."""
    products: str
    """What other products of the graph round to that are not quantized."""

    @property
    def properties(self) -> dict[str, str]:
        """What keeps the pools, and the blocks of them, in the form that `pool_shape` and `new_pool` say."""
        return {"KV_CACHE_PRECISION": self.pools, "INFERENCE_PRECISION_HINT": self.products}


def pool_shape(blocks: int, kv_heads: int, head_dim: int) -> tuple[int, int, int, int]:
    """The shape of a layer's pool of keys, and of that of its values."""
    return blocks, kv_heads, BLOCK, head_dim


def new_pool(shape: tuple[int, ...], element_type: ov.Type) -> tuple[np.ndarray, ov.Tensor]:
    """A pool of zeros, and the tensor that it is the memory of; bfloat16 is in the array as uint16."""
    pool = np.zeros(shape, np.uint16 if element_type == ov.Type.bf16 else np.float32)
    return pool, ov.Tensor(pool, ov.Shape(shape), element_type)


def extension(attention: Attention) -> Any:
    """What makes the operator of nodes `PagedAttention` where a graph is read."""
    from openvino.frontend.onnx import ConversionExtension  # behind `library`, which imports OpenVINO as it should be

    return ConversionExtension(PAGED_ATTENTION, DOMAIN, partial(_converted, attention))


def let_pools_have_any_type(model: ov.Model) -> None:
    """Leave it to the session what the pools hold, as the operator demands."""
    for parameter in model.get_parameters():
        if parameter.friendly_name.startswith(("key_cache.", "value_cache.")):
            parameter.set_element_type(ov.Type.dynamic)
    model.validate_nodes_and_infer_types()


def take_one_token(model: ov.Model) -> None:
    """Give a decoder static shapes, those of one new token of one row. Where they are dynamic, OpenVINO finds them
    between operators in each run, which takes it 1 to 2 of 20 ms in a model of 0.5B."""
    hidden = model.input(contract.INPUTS_EMBEDS).partial_shape[2]
    of_tokens = {contract.INPUTS_EMBEDS: [1, 1, hidden], contract.POSITION_IDS: [1, 1], contract.LOGITS_INDEX: [1, 1]}
    model.reshape({**of_tokens, PAST_LENS: [1], SUBSEQUENCE_BEGINS: [2], BLOCK_INDICES_BEGINS: [2]})


@cache
def require_paged_attention(kv_heads: int, head_dim: int, attention: Attention) -> None:
    """Check that this OpenVINO has the operator, and that it attends as it should to keys of this shape.

    Raises:
        CapabilityError: it has none, or another one.
    """
    try:
        with kept_signal_stack():
            difference = _difference(kv_heads, head_dim, attention)
        is_far = difference > _TOLERANCE[attention.pools]
        found = f"openvino {ov.__version__}: results differ by {difference:.2g}" if is_far else None
    except Exception as error:  # OpenVINO raises RuntimeError and its own classes.
        found = f"openvino {ov.__version__}: {shortened(error)}"
    if found is not None:
        raise CapabilityError(
            "This version of OpenVINO has no paged attention that can be used.",
            where=f"{Count(kv_heads, 'key-value head')} of {head_dim} numbers",
            expected="that of openvino 2026.4",
            found=found,
            fix="install openvino 2026.4, or let the engine itself decode",
        )


def _converted(attention: Attention, node: ov.frontend.NodeContext) -> list[ov.Output]:
    inputs = [node.get_input(index) for index in range(5 + len(BLOCK_TABLE))]
    return [_attend(inputs, node.get_attribute("kv_heads"), node.get_attribute("head_dim"), attention)]


def _attend(inputs: list[ov.Output], kv_heads: int, head_dim: int, attention: Attention) -> ov.Output:
    """The operator's result, float32. Its operands are rounded here where the session rounds no others."""
    if attention.pools == attention.products:
        return _operator(inputs, kv_heads, head_dim).output(0)
    ops: Any = ov.opset13
    rounded = [ops.convert(each, attention.pools).output(0) for each in inputs[:3]]
    return ops.convert(_operator([*rounded, *inputs[3:]], kv_heads, head_dim).output(0), "f32").output(0)


def _operator(inputs: list[ov.Output], kv_heads: int, head_dim: int) -> ov.Node:
    """The operator, causal and over everything that a sequence has.

    Args:
        inputs: queries, keys and values [tokens, heads * head_dim] of the new tokens; pools of keys and of values; and
            those of `BLOCK_TABLE`.
    """
    new_and_pools, (*per_sequence, max_context_len) = inputs[:5], inputs[5:]
    no_int32 = _constant(np.empty(0, np.int32))
    no_float32 = _constant(np.empty(0, np.float32))
    zero = _constant(np.int32(0))
    operator = ov.op._PagedAttentionExtension(
        [
            *new_and_pools,
            *per_sequence,
            _constant(np.float32(head_dim**-0.5)),
            zero,  # sliding_window
            no_float32,  # alibi_slopes
            max_context_len,
            no_int32,  # score_aggregation_window
            no_int32,  # rotated_block_indices
            no_int32,  # rotation_deltas
            no_float32,  # rotation_trig_lut
            no_float32,  # xattention_threshold
            zero,  # xattention_block_size
            zero,  # xattention_stride
            no_float32,  # sinks
            zero,  # adaptive_rkv_start_size
            no_int32,  # adaptive_rkv_evictable_sizes
            no_int32,  # adaptive_rkv_diversity_block_set_indices
            no_int32,  # adaptive_rkv_diversity_block_set_indices_begins
            no_int32,  # token_type_ids
            _constant(np.empty(0, np.uint8)),  # qq_bias
            no_int32,  # qq_bias_begins
        ]
    )
    info = operator.get_rt_info()
    info["num_k_heads"] = info["num_v_heads"] = kv_heads
    info["k_head_size"] = info["v_head_size"] = head_dim
    return operator


def _constant(content: Any) -> ov.Output:
    return ov.opset13.constant(np.asarray(content)).output(0)


def _difference(kv_heads: int, head_dim: int, attention: Attention) -> float:
    """How far the operator is from attention in NumPy: three and then two tokens of a sequence, next to another one."""
    heads = 2 * kv_heads
    random = np.random.default_rng(0)
    widths = (heads * head_dim, kv_heads * head_dim, kv_heads * head_dim)
    long, short = ([random.standard_normal((count, width)).astype(np.float32) for width in widths] for count in (5, 2))
    request = _alone(heads, kv_heads, head_dim, attention).create_infer_request()
    shape = pool_shape(3, kv_heads, head_dim)
    pools = [new_pool(shape, getattr(ov.Type, attention.pools)) for _ in range(2)]
    for index, (_, tensor) in enumerate(pools, start=len(widths)):
        request.set_input_tensor(index, tensor)
    together = [np.concatenate(parts) for parts in zip((part[3:] for part in long), short, strict=True)]
    runs = (
        ([part[:3] for part in long], [0], [0, 3], [2], [0, 1], 3),
        (together, [3, 0], [0, 2, 4], [2, 0], [0, 1, 2], 5),
    )
    found = []
    for new, *table in runs:
        numbers = [np.asarray(values, np.int32) for values in table]
        for first, arrays in ((0, new), (len(new) + len(pools), numbers)):
            for index, array in enumerate(arrays, start=first):
                request.set_input_tensor(index, ov.Tensor(array, shared_memory=True))
        request.infer()
        found.append(request.get_output_tensor(0).data.copy())
    expected = [_attended(*(part.reshape(len(part), -1, head_dim) for part in parts)) for parts in (long, short)]
    wanted = [expected[0][:3], np.concatenate([expected[0][3:], expected[1]])]
    return float(max(np.abs(a - b).max() for a, b in zip(found, wanted, strict=True)))


def _alone(heads: int, kv_heads: int, head_dim: int, attention: Attention) -> ov.CompiledModel:
    """The operator, compiled by itself."""
    ops: Any = ov.opset13
    widths = (heads * head_dim, kv_heads * head_dim, kv_heads * head_dim)
    parameters = [ops.parameter([-1, width], ov.Type.f32) for width in widths]
    parameters += [ops.parameter([-1] * 4, ov.Type.dynamic) for _ in range(2)]
    parameters += [ops.parameter([-1] * rank, ov.Type.i32) for rank in BLOCK_TABLE.values()]
    attended = _attend([parameter.output(0) for parameter in parameters], kv_heads, head_dim, attention)
    return ov.Core().compile_model(ov.Model([attended], parameters), "CPU", attention.properties)


def _attended(query_THD: np.ndarray, key_TKD: np.ndarray, value_TKD: np.ndarray) -> np.ndarray:
    """Causal attention of one sequence, [T, H * D]."""
    group = query_THD.shape[1] // key_TKD.shape[1]
    key_THD, value_THD = (np.repeat(each, group, axis=1) for each in (key_TKD, value_TKD))
    scores_HTT = np.einsum("thd,uhd->htu", query_THD, key_THD) * query_THD.shape[2] ** -0.5
    hidden = np.triu(np.ones(scores_HTT.shape[1:], bool), 1)
    weights_HTT = np.exp(np.where(hidden, -np.inf, scores_HTT))
    weights_HTT /= weights_HTT.sum(axis=2, keepdims=True)
    result_THD: np.ndarray = np.einsum("htu,uhd->thd", weights_HTT, value_THD)
    return result_THD.reshape(len(query_THD), -1)
