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
from r1v_export.checkpoint.spec import LanguageSpec, ModelSpec

LM_HEAD_LINEAR = LM_HEAD.removesuffix(".weight")
PATCH_EMBEDDING = "vision_model.embeddings.patch_embedding"

_LAYER = re.compile(r"(?P<tower>vision_model\.encoder|language_model\.model)\.layers\.(?P<index>\d+)\.")


@dataclass(frozen=True)
class Fold:
    """What makes a site's tensor: dividing these by s makes channel i of the tensor s[i] times smaller.

    Exact in real numbers: the weight and bias of a norm are per channel; the rows of a linear are the channels of its
    output, which reach the site through nothing but weighted sums over tokens (attention) or a product (SwiGLU).
    """

    tensors: tuple[str, ...]
    """Names of the weight and, where there is one, the bias."""
    repeats: int = 1
    """Query heads that share a key-value head: o_proj reads each channel of v_proj this many times."""
    head_dim: int = 1
    """Size of what repeats; of meaning only with `repeats`."""
    makes_values: bool = False
    """Whether they make the values of a key-value cache, which become smaller too."""

    def shared(self, values_I: Tensor) -> Tensor:
        """The mean over the channels that come from one and the same channel, at each of them."""
        heads = values_I.unflatten(0, (-1, self.repeats, self.head_dim))
        return heads.mean(1, keepdim=True).expand_as(heads).flatten()

    def of_source(self, values_I: Tensor) -> Tensor:
        """Values that are equal where a channel repeats, once per channel of what makes the tensor."""
        return values_I.unflatten(0, (-1, self.repeats, self.head_dim))[:, 0].flatten()


@dataclass(frozen=True)
class Site:
    """One tensor that linears read."""

    name: str
    """That of its first linear; the key of its statistics."""
    linears: tuple[str, ...]
    in_features: int
    block: str
    """The module that is calibrated in one go, `language_model.model.layers.0` for example."""
    fold: Fold | None
    """None: what makes the tensor is not linear in any weight (GELU), so no scale can be taken out of it."""


def move_scale(site: Site, scale_I: Tensor, tensors: dict[str, Tensor]) -> None:
    """Take the scale out of what makes the site's tensor and put it into what reads it: W x = (W diag(s)) (x / s).

    Args:
        scale_I: [in], positive; equal where the fold's channels repeat.
        tensors: weights and biases by checkpoint name; entries are replaced, tensors not written to.
    """
    assert site.fold is not None
    for linear in site.linears:
        tensors[f"{linear}.weight"] = tensors[f"{linear}.weight"] * scale_I
    divisor = site.fold.of_source(scale_I)
    for name in site.fold.tensors:
        tensors[name] = tensors[name] / (divisor[:, None] if tensors[name].ndim == 2 else divisor)


def linear_shapes(spec: ModelSpec) -> dict[str, tuple[int, int]]:
    """(out features, in features) of every linear by name, in model order, the language-model head included."""
    weights = {n.removesuffix(".weight"): shape for n, shape in expected_tensors(spec).items() if n.endswith(".weight")}
    return {linear: (weights[linear][0], weights[linear][1]) for site in sites(spec) for linear in site.linears}


def layer_of(name: str) -> tuple[str, int] | None:
    """(tower, layer number) of a linear, None outside the layers: the projector and the head."""
    match = _LAYER.match(name)
    return (match["tower"], int(match["index"])) if match else None


def sites(spec: ModelSpec) -> tuple[Site, ...]:
    """All sites in model order."""
    return (*_vision_sites(spec), *_projector_sites(spec), *_language_sites(spec.language))


def _vision_sites(spec: ModelSpec) -> Iterator[Site]:
    hidden = spec.vision.hidden_size
    parts = ("weight", "bias") if spec.vision.norm == "layer_norm" else ("weight",)
    for index in range(spec.vision.num_layers):
        block = f"vision_model.encoder.layers.{index}"
        norm1, norm2 = (Fold(tuple(f"{block}.{norm}.{part}" for part in parts)) for norm in ("norm1", "norm2"))
        yield _site(block, ("attn.qkv",), hidden, norm1)
        yield _site(block, ("attn.proj",), hidden, None)
        yield _site(block, ("mlp.fc1",), hidden, norm2)
        yield _site(block, ("mlp.fc2",), spec.vision.intermediate_size, None)


def _projector_sites(spec: ModelSpec) -> Iterator[Site]:
    yield _site("mlp1", ("1",), spec.projector.in_features, Fold(("mlp1.0.weight", "mlp1.0.bias")))
    yield _site("mlp1", ("3",), spec.projector.hidden_size, None)


def _language_sites(spec: LanguageSpec) -> Iterator[Site]:
    for index in range(spec.num_layers):
        block = f"language_model.model.layers.{index}"
        v_proj = Fold(
            (f"{block}.self_attn.v_proj.weight", f"{block}.self_attn.v_proj.bias"),
            repeats=spec.num_heads // spec.num_kv_heads,
            head_dim=spec.head_dim,
            makes_values=True,
        )
        qkv = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
        yield _site(block, qkv, spec.hidden_size, Fold((f"{block}.input_layernorm.weight",)))
        yield _site(block, ("self_attn.o_proj",), spec.num_heads * spec.head_dim, v_proj)
        norm = Fold((f"{block}.post_attention_layernorm.weight",))
        yield _site(block, ("mlp.gate_proj", "mlp.up_proj"), spec.hidden_size, norm)
        up_proj = Fold((f"{block}.mlp.up_proj.weight",))
        yield _site(block, ("mlp.down_proj",), spec.intermediate_size, up_proj)
    yield Site(LM_HEAD_LINEAR, (LM_HEAD_LINEAR,), spec.hidden_size, LM_HEAD_LINEAR, None)


def _site(block: str, linears: tuple[str, ...], in_features: int, fold: Fold | None) -> Site:
    names = tuple(f"{block}.{linear}" for linear in linears)
    return Site(names[0], names, in_features, block, fold)
