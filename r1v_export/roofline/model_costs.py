"""FLOPs and bytes of a model on one GPU, by its configuration alone: what `counts` counts in its graphs, before there
are any.

Communication between GPUs is not counted.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from r1v_export.quantization.sizes import tensor_bytes
from r1v_export.roofline.counts import Cost
from r1v_export.roofline.gpu_model import CUT_ALONG_INPUTS, GpuModel

_ARITHMETIC = {"fp8": "float8e4m3fn", "int8": "int8"}
"""Of a linear whose inputs are quantized so."""


def vision_costs(model: GpuModel, tiles: int) -> list[Cost]:
    """Vision tower and projector.

    Args:
        tiles: that one GPU encodes.
    """
    vision, projector, width = model.spec.vision, model.spec.projector, model.width
    hidden, patches = vision.hidden_size, tiles * model.spec.tile_patches**2
    positions = 1 + model.spec.tile_patches**2
    rows = tiles * positions
    patch = 3 * vision.patch_size**2
    pixels = 3 * tiles * model.spec.tiling.tile_size**2
    costs = [
        Cost(
            "vision_model.embeddings.patch_embedding",
            model.compute,
            flops=2 * patches * patch * hidden,
            weight_bytes=patch * hidden * width,
            activation_bytes=(pixels + patches * hidden) * width,
            cache_bytes=0,
        )
    ]
    for index in range(vision.num_layers):
        layer = f"vision_model.encoder.layers.{index}"
        attention = Cost(
            f"{layer}.attn",
            model.compute,
            flops=4 * tiles * positions**2 * hidden,
            weight_bytes=0,
            activation_bytes=4 * rows * hidden * width,
            cache_bytes=0,
        )
        costs += [
            _linear(model, f"{layer}.attn.qkv", rows, 3 * hidden, hidden),
            attention,
            _linear(model, f"{layer}.attn.proj", rows, hidden, hidden),
            _linear(model, f"{layer}.mlp.fc1", rows, vision.intermediate_size, hidden),
            _linear(model, f"{layer}.mlp.fc2", rows, hidden, vision.intermediate_size),
        ]
    tokens = tiles * model.spec.tokens_per_tile
    return [
        *costs,
        _linear(model, "mlp1.1", tokens, projector.hidden_size, projector.in_features),
        _linear(model, "mlp1.3", tokens, projector.hidden_size, projector.hidden_size),
    ]


def decoder_costs(model: GpuModel, batch: int, seq: int, length: int) -> list[Cost]:
    """One step of the language model: all of its layers, a GPU's share of each, and logits of the last position.

    Behind its attention the last layer computes that position alone, as our decoder graph does; TensorRT-LLM's own
    network computes all of them there. With pipeline stages this is what the GPUs do one after the other.

    Args:
        batch: sequences.
        seq: new tokens of each.
        length: tokens of each in the cache after the step.
    """
    language = model.spec.language
    costs = [cost for index in range(language.num_layers) for cost in _layer(model, index, batch, seq, length)]
    return [*costs, _linear(model, "language_model.lm_head", batch, model.head_rows, language.hidden_size)]


def _layer(model: GpuModel, index: int, batch: int, seq: int, length: int) -> Iterator[Cost]:
    language, tp = model.spec.language, model.parallel.tp
    name, rows, hidden = f"language_model.model.layers.{index}", batch * seq, language.hidden_size
    rows_after_attention = batch if index == language.num_layers - 1 else rows
    query, key_value = language.num_heads * language.head_dim, language.num_kv_heads * language.head_dim
    for linear, out_features, in_features in (
        ("self_attn.q_proj", query, hidden),
        ("self_attn.k_proj", key_value, hidden),
        ("self_attn.v_proj", key_value, hidden),
    ):
        yield _linear(model, f"{name}.{linear}", rows, out_features // tp, in_features)
    # Each query sees the tokens up to its own.
    pairs = seq * length - seq * (seq - 1) // 2
    yield Cost(
        f"{name}.self_attn",
        model.compute,
        flops=4 * batch * pairs * query // tp,
        weight_bytes=0,
        activation_bytes=2 * rows * query // tp * model.width,
        cache_bytes=2 * batch * (length + seq) * key_value // tp * model.cache_width,
    )
    for linear, out_features, in_features in (
        ("self_attn.o_proj", hidden, query),
        ("mlp.gate_proj", language.intermediate_size, hidden),
        ("mlp.up_proj", language.intermediate_size, hidden),
        ("mlp.down_proj", hidden, language.intermediate_size),
    ):
        cut_inputs = linear in CUT_ALONG_INPUTS
        own_outputs, own_inputs = (1, tp) if cut_inputs else (tp, 1)
        sizes = (rows_after_attention, out_features // own_outputs, in_features // own_inputs)
        yield _linear(model, f"{name}.{linear}", *sizes)


def _linear(model: GpuModel, name: str, rows: int, out_features: int, in_features: int) -> Cost:
    scheme = model.schemes.get(name)
    inputs = scheme.inputs if scheme else None
    operand_bytes = rows * in_features * (1 if inputs else model.width)
    return Cost(
        name,
        _ARITHMETIC[inputs.type] if inputs else model.compute,
        flops=2 * rows * out_features * in_features,
        weight_bytes=math.ceil(tensor_bytes(name, out_features * in_features, model.schemes, model.compute)),
        activation_bytes=operand_bytes + rows * out_features * model.width,
        cache_bytes=0,
    )
