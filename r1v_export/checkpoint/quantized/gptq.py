"""GPTQ's layout: 4-bit codes, eight input features to a word.

Zero points of `checkpoint_format: gptq` (all but the newest checkpoints) are stored minus one, modulo 16; `gptq_v2`
stores them as they are. Symmetric checkpoints have 8 everywhere: their codes minus 8 are int4.

With act-order, input feature i may belong to any group, `g_idx[i]`. Groups of neighbors are what every target has, and
the input of most linears cannot be reordered (the residual stream is read by others too): such weights are refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from r1v_export.checkpoint.config_section import Section
from r1v_export.checkpoint.quantized.int4_packing import unpack
from r1v_export.checkpoint.quantized.layout import FLOATS, Decoded, LinearLayout, TensorRule

ORDER = (0, 1, 2, 3, 4, 5, 6, 7)
SYMMETRIC_ZERO = 8

TENSORS = {
    "qweight": TensorRule(("I/8", "O"), (torch.int32,)),
    "qzeros": TensorRule(("G", "O/8"), (torch.int32,)),
    "scales": TensorRule(("G", "O"), FLOATS),
    "g_idx": TensorRule(("I",), (torch.int32, torch.int64), optional=True),
}


@dataclass(frozen=True)
class Gptq:
    """`quant_method: gptq`; the same for every linear."""

    group_size: int
    symmetric: bool
    zero_offset: int
    method = "gptq"
    marker = "qweight"

    @classmethod
    def read(cls, config: Section) -> Gptq:
        """
        Raises:
            CheckpointError: not 4 bits in groups, or an unknown convention for zero points.
        """
        if config.size("bits") != 4:
            raise config.wrong("bits", "4", config.get("bits"))
        version = "gptq"
        if config.has("checkpoint_format"):
            version = config.choice("checkpoint_format", "gptq", "gptq_v2")
        return cls(config.size("group_size"), config.flag("sym"), 1 if version == "gptq" else 0)

    def layout(self, linear: str) -> LinearLayout:
        kind = "symmetric" if self.symmetric else "asymmetric"
        return LinearLayout(
            name=f"GPTQ, {kind}, in groups of {self.group_size}",
            qweight_type="int4" if self.symmetric else "uint4",
            per_tensor=False,
            group_size=self.group_size,
            inputs=None,
            tensors=TENSORS,
            decode=partial(decode, self),
        )


def decode(settings: Gptq, tensors: Mapping[str, Tensor]) -> Decoded:
    """Codes, scales and zero points, output features first.

    Raises:
        ValueError: groups that are not neighbors, or zero points in a symmetric checkpoint.
    """
    qweight_OI = unpack(tensors["qweight"], 0, ORDER).t().contiguous()
    zero_point_OG = unpack(tensors["qzeros"], 1, ORDER).t().contiguous() + settings.zero_offset & 0xF
    _require_neighbors(tensors.get("g_idx"), qweight_OI.shape[1], settings.group_size)
    scale_OG = tensors["scales"].float().t().contiguous()
    if not settings.symmetric:
        return Decoded(qweight_OI, scale_OG, zero_point_OG)
    if bool((zero_point_OG != SYMMETRIC_ZERO).any()):
        raise ValueError(f"zero points other than {SYMMETRIC_ZERO}, although config.json says sym: true")
    return Decoded(qweight_OI - SYMMETRIC_ZERO, scale_OG)


def _require_neighbors(group_I: Tensor | None, in_features: int, group_size: int) -> None:
    if group_I is None or torch.equal(group_I.long(), torch.arange(in_features) // group_size):
        return
    raise ValueError(
        "groups in act-order (g_idx): inputs of one group do not lie side by side. "
        "Use a checkpoint made with desc_act: false or static_groups: true"
    )
