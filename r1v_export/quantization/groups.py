"""Where a model can be quantized: its linears, grouped by the tensor that they read.

Linears that read the same tensor share its statistics, its input scale and any per-channel scale that AWQ or
SmoothQuant takes out of it. Engines fuse the same groups (q/k/v, gate/up).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from r1v_export.checkpoint.names import LM_HEAD, expected_tensors
from r1v_export.model_spec import LanguageSpec, ModelSpec

LM_HEAD_LINEAR = LM_HEAD.removesuffix(".weight")
PATCH_EMBEDDING = "vision_model.embeddings.patch_embedding"

_LAYER = re.compile(r"(?P<tower>vision_model\.encoder|language_model\.model)\.layers\.(?P<index>\d+)\.")


@dataclass(frozen=True)
class SmoothLayer:
    """The layer that produces a group's input: dividing its tensors by s makes channel i of the input s[i] times
    smaller.

    Exact in real numbers: the weight and bias of a norm are per channel; the rows of a linear are the channels of its
    output, which reach the group through nothing but weighted sums over tokens (attention) or a product (SwiGLU).
    """

    tensors: tuple[str, ...]
    """Names of the weight and, where there is one, the bias."""
    num_kv_groups: int = 1
    """Query heads that share a key-value head: o_proj reads each channel of v_proj this many times."""
    head_dim: int = 1
    """Size of what repeats; of meaning only with `num_kv_groups`."""
    produces_values: bool = False
    """Whether it produces the values of a key-value cache, which become smaller too."""

    def shared(self, values_I: Tensor) -> Tensor:
        """The mean over the input channels that come from the same source channel, [in] -> [in]."""
        heads = self._by_head(values_I)
        return heads.mean(1, keepdim=True).expand_as(heads).flatten()

    def to_source_channels(self, values_I: Tensor) -> Tensor:
        """One value per source channel, [in] -> [source channels]; values are equal where a channel repeats."""
        return self._by_head(values_I)[:, 0].flatten()

    def _by_head(self, values_I: Tensor) -> Tensor:
        """[in] -> [key-value heads, query heads of each, channels]."""
        heads: Tensor = values_I.unflatten(0, (-1, self.num_kv_groups, self.head_dim))
        return heads


@dataclass(frozen=True)
class LinearGroup:
    """The linears that read one tensor."""

    name: str
    """That of its first linear; the key of its statistics."""
    linears: tuple[str, ...]
    in_features: int
    block: str
    """The module that is calibrated in one go, `language_model.model.layers.0` for example."""
    smooth_layer: SmoothLayer | None
    """None: what makes the tensor is not linear in any weight (GELU), so no scale can be taken out of it."""


def smoothed_tensors(group: LinearGroup) -> tuple[str, ...]:
    """The tensors that a scale of a group's input changes, by checkpoint name: its weights, and those of the layer
    before."""
    assert group.smooth_layer is not None
    return (*(f"{linear}.weight" for linear in group.linears), *group.smooth_layer.tensors)


def smoothed_values(
    group: LinearGroup, scale_I: Tensor, tensor: str, values: Tensor, rows: slice = slice(None)
) -> Tensor:
    """What a tensor becomes when a scale moves from the layer that produces a group's input into the group's weights:
    W x = (W diag(s)) (x / s).

    Args:
        scale_I: [in], positive; equal where channels of the smooth layer repeat.
        tensor: one of `smoothed_tensors`.
        values: its values of these rows, float32.
        rows: all if omitted.
    """
    assert group.smooth_layer is not None
    if tensor.removesuffix(".weight") in group.linears:
        return values * scale_I
    divisor = group.smooth_layer.to_source_channels(scale_I)[rows]
    return values / (divisor[:, None] if values.ndim == 2 else divisor)


def apply_smoothing(group: LinearGroup, scale_I: Tensor, tensors: dict[str, Tensor]) -> None:
    """Move a scale as `smoothed_values` does, in all tensors that it changes.

    Args:
        scale_I: [in], positive; equal where channels of the smooth layer repeat.
        tensors: weights and biases by checkpoint name, float32; entries are replaced, tensors not written to.
    """
    for name in smoothed_tensors(group):
        tensors[name] = smoothed_values(group, scale_I, name, tensors[name])


def linear_shapes(spec: ModelSpec) -> dict[str, tuple[int, int]]:
    """(out features, in features) of every linear by name, in model order, the language-model head included."""
    weights = {n.removesuffix(".weight"): shape for n, shape in expected_tensors(spec).items() if n.endswith(".weight")}
    return {
        linear: (weights[linear][0], weights[linear][1]) for group in linear_groups(spec) for linear in group.linears
    }


def layer_of(name: str) -> tuple[str, int] | None:
    """(tower, layer number) of a linear, None outside the layers: the projector and the head."""
    match = _LAYER.match(name)
    return (match["tower"], int(match["index"])) if match else None


def linear_groups(spec: ModelSpec) -> tuple[LinearGroup, ...]:
    """All groups of a model, in model order."""
    return (*_vision_groups(spec), *_projector_groups(spec), *_language_groups(spec.language))


def _vision_groups(spec: ModelSpec) -> Iterator[LinearGroup]:
    hidden = spec.vision.hidden_size
    parts = ("weight", "bias") if spec.vision.norm == "layer_norm" else ("weight",)
    for index in range(spec.vision.num_layers):
        block = f"vision_model.encoder.layers.{index}"
        norm1, norm2 = (SmoothLayer(tuple(f"{block}.{norm}.{part}" for part in parts)) for norm in ("norm1", "norm2"))
        yield _group(block, ("attn.qkv",), hidden, norm1)
        yield _group(block, ("attn.proj",), hidden, None)
        yield _group(block, ("mlp.fc1",), hidden, norm2)
        yield _group(block, ("mlp.fc2",), spec.vision.intermediate_size, None)


def _projector_groups(spec: ModelSpec) -> Iterator[LinearGroup]:
    yield _group("mlp1", ("1",), spec.projector.in_features, SmoothLayer(("mlp1.0.weight", "mlp1.0.bias")))
    yield _group("mlp1", ("3",), spec.projector.hidden_size, None)


def _language_groups(spec: LanguageSpec) -> Iterator[LinearGroup]:
    for index in range(spec.num_layers):
        block = f"language_model.model.layers.{index}"
        v_proj = SmoothLayer(
            (f"{block}.self_attn.v_proj.weight", f"{block}.self_attn.v_proj.bias"),
            num_kv_groups=spec.num_heads // spec.num_kv_heads,
            head_dim=spec.head_dim,
            produces_values=True,
        )
        qkv = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
        yield _group(block, qkv, spec.hidden_size, SmoothLayer((f"{block}.input_layernorm.weight",)))
        yield _group(block, ("self_attn.o_proj",), spec.num_heads * spec.head_dim, v_proj)
        norm = SmoothLayer((f"{block}.post_attention_layernorm.weight",))
        yield _group(block, ("mlp.gate_proj", "mlp.up_proj"), spec.hidden_size, norm)
        up_proj = SmoothLayer((f"{block}.mlp.up_proj.weight",))
        yield _group(block, ("mlp.down_proj",), spec.intermediate_size, up_proj)
    yield LinearGroup(LM_HEAD_LINEAR, (LM_HEAD_LINEAR,), spec.hidden_size, LM_HEAD_LINEAR, None)


def _group(block: str, linears: tuple[str, ...], in_features: int, smooth_layer: SmoothLayer | None) -> LinearGroup:
    names = tuple(f"{block}.{linear}" for linear in linears)
    return LinearGroup(names[0], names, in_features, block, smooth_layer)
