"""The quantized model in PyTorch: computes what the Q/DQ graphs compute, in float32."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from r1v_export.quantization.kv_scales import CacheType, KVScales
from r1v_export.quantization.number_formats import RANGES
from r1v_export.quantization.quantized_linear import QuantizedLinear, absmax, quantize_dequantize, token_scale

Entry = TypeVar("Entry")


class FakeQuantLinear(nn.Module):
    """Quantize and dequantize the input [..., I], multiply by the dequantized weight, add the bias.

    The weight is dequantized once, when the module is made; the input at every call.
    """

    weight: Tensor
    bias: Tensor | None
    input_scale: Tensor | None
    pre_quant_scale: Tensor | None

    def __init__(self, linear: QuantizedLinear, bias: Tensor | None = None) -> None:
        super().__init__()
        self.input_type = linear.input_type
        self.register_buffer("weight", linear.dequantize())
        self.register_buffer("bias", None if bias is None else bias.detach().float())
        self.register_buffer("input_scale", linear.input_scale)
        self.register_buffer("pre_quant_scale", linear.pre_quant_scale)

    def saturation(self, x: Tensor) -> Tensor | None:
        """The largest magnitude of an input [..., I] over the largest that its static scale represents, a scalar; None
        if scales are dynamic or inputs are not quantized."""
        if self.input_type is None or self.input_scale is None:
            return None
        scaled = x if self.pre_quant_scale is None else x * self.pre_quant_scale
        return absmax(scaled) / (self.input_scale * RANGES[self.input_type][1])

    def forward(self, x: Tensor) -> Tensor:
        if self.pre_quant_scale is not None:
            x = x * self.pre_quant_scale
        if self.input_type is not None:
            scale = token_scale(x, self.input_type) if self.input_scale is None else self.input_scale
            x = quantize_dequantize(x, scale, self.input_type)
        return F.linear(x, self.weight, self.bias)


class FakeQuantCache(nn.Module):
    """Keys or values [B, K, S, D], quantized and dequantized as in a cache of 8 bits."""

    scale: Tensor

    def __init__(self, scale: float, kind: CacheType) -> None:
        super().__init__()
        self.kind = kind
        self.register_buffer("scale", torch.tensor(scale))

    def forward(self, x: Tensor) -> Tensor:
        return quantize_dequantize(x, self.scale, self.kind)


def apply(
    module: nn.Module,
    quantized: Mapping[str, QuantizedLinear],
    overrides: Mapping[str, Tensor],
    prefix: str = "",
    cache_scales: Mapping[str, KVScales] | None = None,
) -> None:
    """Put quantized linears and rewritten tensors in their places, in place.

    Args:
        module: the whole reference model, or one of its modules; float32.
        quantized: linears by checkpoint name.
        overrides: full replacements of other tensors (norm weights, biases), by checkpoint name.
        prefix: checkpoint name of `module` with a dot at its end; empty for the whole model. Entries that belong
            elsewhere in the model are ignored.
        cache_scales: of cached keys and values, by the attention's checkpoint name; none where the cache is not
            quantized.
    """
    device = next(module.parameters()).device
    for name, tensor in _inside(overrides, prefix).items():
        with torch.no_grad():
            module.get_parameter(name).data = tensor.to(device, torch.float32)
    for name, linear in _inside(quantized, prefix).items():
        bias = module.get_submodule(name).bias
        module.set_submodule(name, FakeQuantLinear(linear.to(device), bias if isinstance(bias, Tensor) else None))
    for name, scales in _inside(cache_scales or {}, prefix).items():
        for what, scale in scales.items():
            module.set_submodule(f"{name}.cached_{what}", FakeQuantCache(scale, scales.kind).to(device))


def _inside(entries: Mapping[str, Entry], prefix: str) -> dict[str, Entry]:
    return {name.removeprefix(prefix): entry for name, entry in entries.items() if name.startswith(prefix)}
