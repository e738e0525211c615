"""The largest magnitude of every tensor inside the model while it computes: what a type of less range must hold.

Recorded are the inputs and outputs of every linear, norm, convolution and activation, the residual stream behind every
block, and attention scores (q k / sqrt(D), before the softmax). Of linears whose inputs are quantized by a static
scale, also how far an input exceeds what that scale represents.

Shape letters: T tiles, P positions, B batch, S new tokens, C cache capacity, H heads, K key-value heads, D head dim.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from r1v_export.reference import language, operators, vision

SCORES = "attention scores"
_LAYER = re.compile(r"[a-z_.]+\.layers\.\d+")
_STREAMS = (vision.Block, language.DecoderLayer)


@dataclass
class Magnitudes:
    """Of what was computed since recording began."""

    _largest: dict[str, Tensor] = field(default_factory=dict)
    """Scalars; they stay on their device until they are read, so that nothing waits for it."""
    _saturation: dict[str, Tensor] = field(default_factory=dict)

    def record(self, name: str, values: Tensor) -> None:
        """Keep the largest magnitude of values [...] under a name; integer and empty tensors are ignored."""
        if values.is_floating_point() and values.numel():
            low, high = torch.aminmax(values)
            _keep_largest(self._largest, name, torch.maximum(-low, high).float())

    def record_saturation(self, name: str, ratio: Tensor | None) -> None:
        """Keep the largest saturation ratio [] of a linear; None is ignored."""
        if ratio is not None:
            _keep_largest(self._saturation, name, ratio)

    def saturations(self) -> dict[str, float]:
        """Linear -> its input's largest magnitude over what its static scale represents."""
        return {name: float(ratio) for name, ratio in self._saturation.items()}

    def by_tensor(self) -> dict[str, float]:
        """Name of each tensor ("...mlp.down_proj: input") -> its largest magnitude; infinite where one was NaN."""
        found = {name: float(largest) for name, largest in self._largest.items()}
        return {name: math.inf if math.isnan(largest) else largest for name, largest in found.items()}

    def by_layer(self) -> dict[str, tuple[str, float]]:
        """Layer, or module outside the layers -> its tensor with the largest magnitude, and that."""
        layers: dict[str, tuple[str, float]] = {}
        for tensor, magnitude in self.by_tensor().items():
            layer = _layer_of(tensor)
            if layer not in layers or magnitude > layers[layer][1]:
                layers[layer] = (tensor, magnitude)
        return layers


def _keep_largest(found: dict[str, Tensor], name: str, value: Tensor) -> None:
    found[name] = torch.maximum(found[name], value) if name in found else value


@runtime_checkable
class StaticInputs(Protocol):
    """A linear that may quantize its input by a static scale."""

    def saturation(self, x: Tensor) -> Tensor | None:
        """Return the largest magnitude of x [..., features] over what the static scale represents; None without a
        static scale."""
        ...


@contextmanager
def recorded(model: nn.Module, prefix: str = "", magnitudes: Magnitudes | None = None) -> Iterator[Magnitudes]:
    """Record whatever the model computes in the meantime.

    Args:
        prefix: the name of `model` in the whole model with a dot at its end, where it is a part of it.
        magnitudes: to record in; new ones if omitted.
    """
    magnitudes = magnitudes or Magnitudes()
    handles = []
    modules = [((prefix + name).rstrip("."), module) for name, module in model.named_modules()]
    for name, module in modules:
        leaf = next(module.children(), None) is None
        if leaf or isinstance(module, _STREAMS):
            handles.append(module.register_forward_hook(_in_and_out(name, magnitudes)))
        if isinstance(module, vision.Attention):
            handles += _vision_scores(name, module, magnitudes)
    owners = {id(m): name for name, m in modules if isinstance(m, language.Attention)}
    current: list[str] = []
    for module in model.modules():
        if id(module) in owners:
            handles.append(module.register_forward_pre_hook(_entered(owners[id(module)], current)))
    attention = operators.cached_attention
    setattr(operators, attention.__name__, _with_scores(attention, current, magnitudes))
    try:
        yield magnitudes
    finally:
        setattr(operators, attention.__name__, attention)
        for handle in handles:
            handle.remove()


def _in_and_out(name: str, magnitudes: Magnitudes) -> Callable[..., None]:
    def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        magnitudes.record(f"{name}: input", args[0])
        magnitudes.record(f"{name}: output", output[0] if isinstance(output, tuple) else output)
        if isinstance(module, StaticInputs):
            magnitudes.record_saturation(name, module.saturation(args[0]))

    return hook


def _entered(name: str, current: list[str]) -> Callable[..., None]:
    def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
        current[:] = [name]

    return hook


def _vision_scores(name: str, attention: vision.Attention, magnitudes: Magnitudes) -> list[Any]:
    """Queries and keys leave `q_norm` and `k_norm`, in this order."""
    queries: list[Tensor] = []

    def keep(module: nn.Module, args: tuple[Any, ...], q_TPE: Tensor) -> None:
        queries[:] = [q_TPE]

    def score(module: nn.Module, args: tuple[Any, ...], k_TPE: Tensor) -> None:
        q_THPD, k_THPD = attention._split_heads(queries.pop()), attention._split_heads(k_TPE)
        for q_HPD, k_HPD in zip(q_THPD, k_THPD, strict=True):  # a tile at a time: scores are large
            magnitudes.record(f"{name}: {SCORES}", q_HPD * q_HPD.shape[-1] ** -0.5 @ k_HPD.mT)

    return [attention.q_norm.register_forward_hook(keep), attention.k_norm.register_forward_hook(score)]


def _with_scores(
    attention: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor], current: list[str], magnitudes: Magnitudes
) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    def attend(q_BHSD: Tensor, k_BKCD: Tensor, v_BKCD: Tensor, cache_length_B: Tensor) -> Tensor:
        for q_HSD, k_KCD, length in zip(q_BHSD, k_BKCD, cache_length_B.tolist(), strict=True):
            q_KGSD = q_HSD.unflatten(0, (k_KCD.shape[0], -1)) * q_HSD.shape[-1] ** -0.5
            for name in current:
                magnitudes.record(f"{name}: {SCORES}", q_KGSD @ k_KCD[:, None, :length].mT)
        return attention(q_BHSD, k_BKCD, v_BKCD, cache_length_B)

    return attend


def _layer_of(tensor: str) -> str:
    """The numbered layer of a tensor; its module if that is outside the layers."""
    module = tensor.partition(":")[0]
    match = _LAYER.match(module)
    return match[0] if match else module
