"""GPTQ's layout: values of 4 bits, eight input features to a word, or of 8 bits, four to a word.

Zero points of `checkpoint_format: gptq` (all but the newest checkpoints) are stored minus one, modulo 16; `gptq_v2`
stores them as they are. Symmetric checkpoints have 8 everywhere: their values minus 8 are int4. Files that store the
one and declare the other exist, so the convention is read from the quantized values where they show it (`zero_points`).

Values of 8 bits minus 128 are int8. Only symmetric checkpoints are read: weights hardly show a zero point that is one
of 256 steps off.

`group_size: -1` is one scale for each output feature. Every target has groups of 4-bit values, so such a scale is
repeated for groups of 128, 64 or 32 inputs: the same weight, bit for bit.

With act-order, input feature i may belong to any group, `g_idx[i]`. Groups of neighbors are what every target has, so
columns are sorted by their group, and the input is gathered in the same order: W x = W[:, order] x[order].
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from r1v_export.checkpoint.config_section import Section
from r1v_export.checkpoint.quantized.int4_packing import unpack
from r1v_export.checkpoint.quantized.layout import (
    FLOATS,
    Decoded,
    LinearLayout,
    StoredLinear,
    TensorRule,
    has_equal_groups,
    order_by_group,
    repeat_for_groups,
    split_size,
    unsupported,
)
from r1v_export.checkpoint.quantized.zero_points import VERSIONS, stored_offset, symmetric_zero
from r1v_export.checkpoint.tensor_file import StoredTensor

ORDERS = {4: (0, 1, 2, 3, 4, 5, 6, 7), 8: (0, 1, 2, 3)}
"""Number of bits -> the order of values in a word."""

_SHARED_TENSORS = {
    "scales": TensorRule(("G", "O"), FLOATS),
    "g_idx": TensorRule(("I",), (torch.int32, torch.int64), optional=True),
}
TENSORS = {
    4: {
        "qweight": TensorRule(("I/8", "O"), (torch.int32,)),
        "qzeros": TensorRule(("G", "O/8"), (torch.int32,)),
        **_SHARED_TENSORS,
    },
    8: {
        "qweight": TensorRule(("I/4", "O"), (torch.int32,)),
        "qzeros": TensorRule(("G", "O/4"), (torch.int32,)),
        **_SHARED_TENSORS,
    },
}
"""By the number of bits."""


@dataclass(frozen=True)
class Gptq:
    """`quant_method: gptq`; the same for every linear."""

    bits: int
    """4, or 8 where `symmetric`."""
    group_size: int | None
    """None: one scale for each output feature."""
    symmetric: bool
    zero_offset: int
    """What is added to stored zero points."""
    declared: str | None
    """`checkpoint_format`, None where the configuration does not say it and 'gptq' is meant."""
    act_order: bool = False
    """`desc_act`: the order of the groups must then be stored."""
    warnings: tuple[str, ...] = ()
    cache_scales: tuple[tuple[str, str], ...] = ()
    method = "gptq"
    marker = "qweight"

    @classmethod
    def read(cls, config: Section) -> Gptq:
        """Read the settings of a GPTQ checkpoint.

        Raises:
            CheckpointError: not 4 bits, or 8 without zero points, or an unknown convention for zero points.
        """
        bits = config.size("bits")
        if bits not in TENSORS:
            where = f"{config.path}: bits"
            raise unsupported(f"GPTQ with {bits} bits is not supported.", where, "4 or 8", bits)
        symmetric = config.flag("sym")
        if bits == 8 and not symmetric:
            where = f"{config.path}: sym"
            raise unsupported("GPTQ with 8 bits and zero points is not supported.", where, "true", "false")
        declared = config.choice("checkpoint_format", *VERSIONS) if config.has("checkpoint_format") else None
        group_size = None if config.get("group_size") == -1 else config.size("group_size")
        act_order = config.get("desc_act") is True
        return cls(bits, group_size, symmetric, VERSIONS[declared or "gptq"], declared, act_order)

    def layout(self, linear: str, in_features: int) -> LinearLayout:
        kind = "symmetric" if self.symmetric else "asymmetric"
        groups = "one group" if self.group_size is None else f"groups of {self.group_size}"
        if self.bits == 8:
            return LinearLayout(
                name=f"GPTQ, 8 bits, {kind}, in {groups}",
                qweight_type="int8",
                per_tensor=False,
                group_size=self.group_size,
                inputs=None,
                tensors=TENSORS[8],
                decode=partial(decode, self),
            )
        return LinearLayout(
            name=f"GPTQ, {kind}, in {groups}",
            qweight_type="int4" if self.symmetric else "uint4",
            per_tensor=False,
            group_size=self.group_size or split_size(in_features),
            inputs=None,
            tensors=TENSORS[4],
            decode=partial(decode, self),
            one_group=self.group_size is None,
        )

    def settle(self, linears: Mapping[str, StoredLinear]) -> Gptq:
        """This format with the zero point convention that the values show, and a warning if another is declared.

        Raises:
            CheckpointError: groups that are not known or not of one size, inputs of parts in different orders, or zero
                points that a symmetric checkpoint does not have.
        """
        for linear in linears.values():
            for part in linear.parts:
                self._require_groups(part, linear.shape[1])
            linear.input_order()
        offset = stored_offset(linears, self.symmetric, self.bits)
        if offset is None or offset == self.zero_offset:
            return self
        return replace(self, zero_offset=offset, warnings=(_other_convention(self.declared, offset),))

    def _require_groups(self, part: Mapping[str, StoredTensor], in_features: int) -> None:
        """Require the group of every input to be known, and as many inputs in each group."""
        size = self.group_size or in_features
        if "g_idx" in part:
            tensor = part["g_idx"]
            expected, found = f"each of 0 to {in_features // size - 1} {size} times", "groups of other sizes"
            known = has_equal_groups(tensor.read(), size)
        else:
            tensor = part["qweight"]
            expected, found = "g_idx, the group of each input", "desc_act: true without g_idx"
            known = not self.act_order
        if not known:
            what = "GPTQ whose groups of inputs are not known or not of one size is not supported."
            raise unsupported(what, f"{tensor.name} in {tensor.file.name}", expected, found)


def decode(settings: Gptq, tensors: Mapping[str, Tensor]) -> Decoded:
    """Quantized values, scales and zero points, output features first.

    Raises:
        ValueError: zero points in a symmetric checkpoint.
    """
    bits, zero = settings.bits, symmetric_zero(settings.bits)
    qweight_OI = unpack(tensors["qweight"], 0, ORDERS[bits], bits).t().contiguous()
    zero_point_GO = unpack(tensors["qzeros"], 1, ORDERS[bits], bits) + settings.zero_offset & (1 << bits) - 1
    input_order_I = order_by_group(tensors["g_idx"]) if "g_idx" in tensors else None
    if input_order_I is not None:
        qweight_OI = qweight_OI.index_select(1, input_order_I)
    scale_OG, zero_point_OG = tensors["scales"].float().t().contiguous(), zero_point_GO.t().contiguous()
    if settings.symmetric and bool((zero_point_OG != zero).any()):
        raise ValueError(f"zero points other than {zero}, although the configuration says sym: true")
    if settings.symmetric:
        qweight_OI = (qweight_OI.to(torch.int16) - zero).to(torch.int8)
    if settings.group_size is None and bits == 8:
        return Decoded(qweight_OI, scale_OG[:, 0].contiguous())
    if settings.group_size is None:
        scale_OG, zero_point_OG = (
            repeat_for_groups(values_O1, qweight_OI.shape[1]) for values_O1 in (scale_OG, zero_point_OG)
        )
    return Decoded(qweight_OI, scale_OG, None if settings.symmetric else zero_point_OG, input_order=input_order_I)


def _other_convention(declared: str | None, offset: int) -> str:
    found = next(version for version, added in VERSIONS.items() if added == offset)
    declaration = (
        f"checkpoint_format says {declared}" if declared else "checkpoint_format is not given, which means gptq"
    )
    convention = "as they are" if offset == 0 else "minus one"
    return (
        f"{declaration}, but the quantized values show zero points stored {convention}: read as {found}. "
        f"To silence this, set checkpoint_format: {found} in the quantization settings."
    )
