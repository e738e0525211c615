"""What quantization makes of one block of the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from r1v_export.quantization.kv_scales import KVScales
from r1v_export.quantization.quantized_linear import QuantizedLinear


@dataclass(frozen=True)
class QuantizedBlock:
    """One block's quantized linears, and the tensors and cache scales that changed with them."""

    linears: dict[str, QuantizedLinear]
    """By checkpoint name."""
    overrides: dict[str, Tensor]
    """Other tensors that took up a scale, whole, float32, by checkpoint name: norms, biases, unquantized linears."""
    kv: KVScales | None
    """None if the block has no cache or its cache is not quantized."""
    smoothing: Mapping[str, Tensor] = field(default_factory=dict)
    """The scales [in], float32, that AWQ or SmoothQuant moved, by group name: what is rescaled, `overrides` included,
    follows from them and the checkpoint."""
