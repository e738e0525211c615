"""What compressed-tensors stores of one linear, and how its values are read.

Shape letters: O output features, I input features, G groups of inputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from r1v_export.checkpoint.quantized.int4_packing import unpack
from r1v_export.checkpoint.quantized.layout import (
    FLOATS,
    Decoded,
    Inputs,
    LinearLayout,
    QWeightType,
    TensorRule,
    order_by_group,
    repeat_for_groups,
    split_size,
)

_PACKED = {"int8": 8, "int4": 4, "uint4": 4}
"""Bits of a value in a word."""
_PLAIN = {"fp8": torch.float8_e4m3fn, "int8": torch.int8, "int4": torch.int8}


@dataclass(frozen=True)
class StoredWeights:
    """How a group's weights are stored."""

    form: str
    qweight_type: QWeightType
    packed: bool
    """In int32 words."""
    strategy: str
    """`tensor`, `channel` or `group`: what shares a scale."""
    group_size: int | None
    act_order: bool
    """Whether `weight_g_idx` names the group of each input."""

    def layout(self, in_features: int, inputs: Inputs | None) -> LinearLayout:
        """The layout of a linear with so many input features."""
        four_bits = self.qweight_type in ("int4", "uint4")
        one_group = four_bits and self.strategy == "channel"
        places = f"in groups of {self.group_size}" if self.group_size else f"per {self.strategy}"
        tensors = self._tensors()
        if inputs in ("fp8 static", "int8 static"):
            tensors["input_scale"] = TensorRule((), FLOATS)
        return LinearLayout(
            name=f"{self.form} {self.qweight_type} {places}{f', {inputs} inputs' if inputs else ''}",
            qweight_type=self.qweight_type,
            per_tensor=self.strategy == "tensor",
            group_size=split_size(in_features) if one_group else self.group_size,
            inputs=inputs,
            tensors=tensors,
            decode=partial(_decode, self, in_features),
            one_group=one_group,
            group_index="weight_g_idx",
        )

    def _tensors(self) -> dict[str, TensorRule]:
        tensors = {"weight_scale": TensorRule(() if self.strategy == "tensor" else ("O", "G"), FLOATS)}
        if not self.packed:
            return {"weight": TensorRule(("O", "I"), (_PLAIN[self.qweight_type],)), **tensors}
        tensors["weight_packed"] = TensorRule(("O", "I/4" if self.qweight_type == "int8" else "I/8"), (torch.int32,))
        tensors["weight_shape"] = TensorRule(("2",), (torch.int64, torch.int32), optional=True)
        if self.qweight_type == "uint4":
            tensors["weight_zero_point"] = TensorRule(("O/8", "G"), (torch.int32,))
        if self.act_order:
            tensors["weight_g_idx"] = TensorRule(("I",), (torch.int32, torch.int64))
        return tensors


def _decode(weights: StoredWeights, in_features: int, tensors: Mapping[str, Tensor]) -> Decoded:
    """Quantized values, scales and zero points as they are.

    Raises:
        ValueError: a `weight_shape` of another linear, or values that 4 bits do not hold.
    """
    input_order_I = None
    if weights.packed:
        qweight_OI = _unpacked(weights, in_features, tensors)
        input_order_I = order_by_group(tensors["weight_g_idx"]) if weights.act_order else None
        qweight_OI = qweight_OI if input_order_I is None else qweight_OI.index_select(1, input_order_I)
    else:
        qweight_OI = tensors["weight"]
        if weights.qweight_type == "int4" and bool(((qweight_OI < -8) | (qweight_OI > 7)).any()):
            raise ValueError("values beyond -8 to 7, although num_bits is 4")
    scale, zero_point_OG = tensors["weight_scale"].float(), None
    if weights.qweight_type == "uint4":
        zero_point_OG = unpack(tensors["weight_zero_point"], 0, tuple(range(8)))[: len(qweight_OI)]
    if weights.strategy == "channel" and weights.qweight_type in ("fp8", "int8"):
        scale = scale[:, 0].contiguous()
    elif weights.strategy == "channel":
        scale = repeat_for_groups(scale, in_features)
        zero_point_OG = None if zero_point_OG is None else repeat_for_groups(zero_point_OG, in_features)
    input_scale = tensors["input_scale"].float() if "input_scale" in tensors else None
    return Decoded(qweight_OI, scale, zero_point_OG, input_scale, input_order=input_order_I)


def _unpacked(weights: StoredWeights, in_features: int, tensors: Mapping[str, Tensor]) -> Tensor:
    """Values from their words: int8 [O, I], 0..15 for uint4."""
    bits, words = _PACKED[weights.qweight_type], tensors["weight_packed"]
    shape = [words.shape[0], in_features]
    if "weight_shape" in tensors and tensors["weight_shape"].tolist() != shape:
        raise ValueError(f"a weight_shape of {tensors['weight_shape'].tolist()}, although the weight is {shape}")
    unsigned_OI = unpack(words, 1, tuple(range(32 // bits)), bits)[:, :in_features].contiguous()
    if weights.qweight_type == "uint4":
        return unsigned_OI
    return (unsigned_OI.to(torch.int16) - (1 << bits - 1)).to(torch.int8)
