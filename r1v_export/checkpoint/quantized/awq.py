"""AutoAWQ's `gemm` layout: unsigned 4-bit values with zero points, inputs first, eight output features to a word."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from r1v_export.checkpoint.config_section import Section
from r1v_export.checkpoint.quantized.int4_packing import unpack
from r1v_export.checkpoint.quantized.layout import FLOATS, Decoded, LinearLayout, StoredLinear, TensorRule, unsupported

ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""Output features of a word, from its lowest four bits up."""

TENSORS = {
    "qweight": TensorRule(("I", "O/8"), (torch.int32,)),
    "qzeros": TensorRule(("G", "O/8"), (torch.int32,)),
    "scales": TensorRule(("G", "O"), FLOATS),
}


@dataclass(frozen=True)
class Awq:
    """`quant_method: awq`; the same for every linear."""

    group_size: int
    warnings: tuple[str, ...] = ()
    cache_scales: tuple[tuple[str, str], ...] = ()
    method = "awq"
    marker = "qweight"

    @classmethod
    def read(cls, config: Section) -> Awq:
        """Read the settings of an AWQ checkpoint.

        Raises:
            CheckpointError: not 4 bits in groups, or in another layout than gemm.
        """
        config.choice("version", "gemm", "GEMM")
        bits = config.size("bits")
        if bits != 4:
            raise unsupported(f"AWQ with {bits} bits is not supported.", f"{config.path}: bits", "4", bits)
        return cls(config.size("group_size"))

    def layout(self, linear: str, in_features: int) -> LinearLayout:
        name = f"AWQ in groups of {self.group_size}"
        return LinearLayout(name, "uint4", False, self.group_size, None, TENSORS, decode)

    def settle(self, linears: Mapping[str, StoredLinear]) -> Awq:
        return self


def decode(tensors: Mapping[str, Tensor]) -> Decoded:
    """Quantized values, scales and zero points as they are, output features first."""
    # Words are turned, an eighth as many as their values.
    return Decoded(
        qweight=unpack(tensors["qweight"].t().contiguous(), 0, ORDER),
        scale=tensors["scales"].float().t().contiguous(),
        zero_point=unpack(tensors["qzeros"].t().contiguous(), 0, ORDER),
    )
