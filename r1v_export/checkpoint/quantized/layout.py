"""What a format stores of one linear, as data, and a linear that was found stored so.

Shape letters: O output features, I input features, G groups of inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from r1v_export.checkpoint.tensor_file import StoredTensor
from r1v_export.errors import CheckpointError

QWeightType = Literal["fp8", "int8", "int4", "uint4"]
Inputs = Literal["fp8 static", "fp8 dynamic", "int8 static", "int8 dynamic"]

FLOATS = (torch.float16, torch.bfloat16, torch.float32)

ORIGINAL = "use the checkpoint it was quantized from, and quantize with `r1v-export build --precision`"
"""What always helps where a quantized checkpoint cannot be used."""

Axis = Literal["O", "I", "G", "O/2", "O/4", "O/8", "I/4", "I/8", "2"]
"""`O/8` is the number of words that hold one value of 4 bits for each output feature; `2` is two."""

SPLIT_GROUPS = (128, 64, 32)
"""Groups that one scale for each output feature may be repeated for, the preferred one first."""


@dataclass(frozen=True)
class TensorRule:
    """One tensor of a linear."""

    shape: tuple[Axis, ...]
    """A scalar may be stored with one axis too."""
    dtypes: tuple[torch.dtype, ...]
    optional: bool = False

    def shape_for(self, out_features: int, in_features: int, group_size: int | None) -> tuple[int, ...]:
        """Return the stored shape for a linear [out_features, in_features] with groups of `group_size` inputs."""
        sizes = {
            "O": out_features,
            "I": in_features,
            "G": in_features // (group_size or in_features),
            "O/2": -(-out_features // 2),
            "O/4": -(-out_features // 4),
            "O/8": -(-out_features // 8),
            "I/4": -(-in_features // 4),
            "I/8": -(-in_features // 8),
            "2": 2,
        }
        return tuple(sizes[axis] for axis in self.shape)


@dataclass(frozen=True)
class Decoded:
    """A linear's quantized values and scales.

    weight[o, i] = (qweight[o, i] - zero_point[o, g]) * scale[o, g] * pre_quant_scale[i]

    where column i of qweight belongs to input feature i, or to input_order[i].
    """

    qweight: Tensor
    """[O, I]: float8_e4m3fn, or int8, with -8..7 for int4 and 0..15 for uint4."""
    scale: Tensor
    """float32, [O], [O, G], or a scalar of the whole weight."""
    zero_point: Tensor | None = None
    """int8 [O, G]; uint4 only."""
    input_scale: Tensor | None = None
    """float32 scalar."""
    pre_quant_scale: Tensor | None = None
    """float32 [I], what the input is multiplied by before anything else; None is ones."""
    input_order: Tensor | None = None
    """int32 [I], the input feature of each column of `qweight`; None is their own order."""

    def weight(self) -> Tensor:
        """The weight that the linear computes with, [O, I] float32, columns in the order of its input features."""
        qweight = self.qweight.float()
        if self.scale.ndim == 2:
            qweight_OGg: Tensor = qweight.unflatten(1, (self.scale.shape[1], -1))
            if self.zero_point is not None:
                qweight_OGg = qweight_OGg - self.zero_point.float()[..., None]
            weight = (qweight_OGg * self.scale[..., None]).flatten(1)
        else:
            weight = qweight * (self.scale[:, None] if self.scale.ndim else self.scale)
        if self.input_order is not None:
            weight = weight[:, self.input_order.argsort()]
        return weight if self.pre_quant_scale is None else weight * self.pre_quant_scale


@dataclass(frozen=True)
class LinearLayout:
    """How a format stores a linear."""

    name: str
    """For messages: "AWQ in groups of 128"."""
    qweight_type: QWeightType
    per_tensor: bool
    """One scale for the whole weight."""
    group_size: int | None
    inputs: Inputs | None
    tensors: Mapping[str, TensorRule]
    """By suffix of the linear's name."""
    decode: Callable[[Mapping[str, Tensor]], Decoded]
    """Raises ValueError, its text the end of "This linear holds ...", for contents that the format does not allow."""
    one_group: bool = False
    """Stored with one scale for each output feature, whatever `group_size` it is read in."""
    group_index: str = "g_idx"
    """Suffix of the tensor that names the group of each input, where there is one."""


class QuantFormat(Protocol):
    """A quantized checkpoint's format, with its settings."""

    method: str
    """`quant_method` of config.json."""
    marker: str
    """Suffix of a tensor that every quantized linear has, and no other does."""

    @property
    def warnings(self) -> tuple[str, ...]:
        """Where the checkpoint is not read as it declares itself."""
        ...

    @property
    def cache_scales(self) -> tuple[tuple[str, str], ...]:
        """Suffixes that the scales of a decoder layer's FP8 keys and values may have; none if they are in 16 bits."""
        ...

    def layout(self, linear: str, in_features: int) -> LinearLayout:
        """Of one linear, by its stored name.

        Raises:
            CheckpointError: the configuration does not say how it is stored.
        """
        ...

    def settle(self, linears: Mapping[str, StoredLinear]) -> QuantFormat:
        """The format with what only the tensors' contents say; itself where that is nothing.

        Raises:
            CheckpointError: contents that are not supported.
        """
        ...


@dataclass(frozen=True)
class StoredLinear:
    """A quantized linear of a checkpoint, found and checked from headers. Several parts are joined along their rows."""

    layout: LinearLayout
    parts: tuple[Mapping[str, StoredTensor], ...]
    """By suffix."""
    shape: tuple[int, int]

    def decode(self) -> Decoded:
        """Read it.

        Raises:
            CheckpointError: a scale is not a positive, finite number, or the quantized values are not what the format
                allows.
        """
        return _joined([self._decode(part) for part in self.parts], self.parts[0])

    def pre_quant_scale(self) -> Tensor | None:
        """`Decoded.pre_quant_scale`, without reading anything else.

        Raises:
            CheckpointError: it is not positive and finite, or parts have different ones.
        """
        found = []
        for part in self.parts:
            stored = part.get("pre_quant_scale")
            scale = None if stored is None else stored.read().float()
            if scale is not None and not bool((scale.isfinite() & (scale > 0)).all()):
                raise _damaged(part, "pre_quant_scale values that are not", "positive scales")
            found.append(None if scale is None or bool((scale == 1).all()) else scale)
        if not all(_same(scale, found[0]) for scale in found):
            raise _damaged(self.parts[0], "scales of their own", "one scale for parts that the model joins")
        return found[0]

    def input_order(self) -> Tensor | None:
        """`Decoded.input_order`, without reading anything else.

        Raises:
            CheckpointError: parts have different ones.
        """
        name = self.layout.group_index
        groups = [part[name].read() if name in part else None for part in self.parts]
        orders = [None if group_I is None else order_by_group(group_I) for group_I in groups]
        if not all(_same(order, orders[0]) for order in orders):
            tensor = next(part[name] for part in self.parts if name in part)
            raise unsupported(
                "Parts of one linear are in different orders of their inputs.",
                f"{tensor.name} in {tensor.file.name}",
                f"the same {name} for parts that the model joins",
                f"a {name} of their own",
            )
        return orders[0]

    def _decode(self, part: Mapping[str, StoredTensor]) -> Decoded:
        try:
            decoded = self.layout.decode({suffix: self._read(suffix, tensor) for suffix, tensor in part.items()})
        except ValueError as error:
            raise _damaged(part, str(error), f"what {self.layout.name} allows") from error
        for scale in (decoded.scale, decoded.input_scale, decoded.pre_quant_scale):
            if scale is not None and not bool((scale.isfinite() & (scale > 0)).all()):
                raise _damaged(part, f"{int((~scale.isfinite() | (scale <= 0)).sum())} that are not", "positive scales")
        if self.layout.qweight_type == "fp8" and not bool(decoded.qweight.float().isfinite().all()):
            raise _damaged(part, "quantized values that are NaN", "finite values")
        return decoded

    def _read(self, suffix: str, stored: StoredTensor) -> Tensor:
        tensor = stored.read()
        return tensor if self.layout.tensors[suffix].shape else tensor.reshape(())


def _joined(parts: list[Decoded], stored: Mapping[str, StoredTensor]) -> Decoded:
    """Parts that the model has as one linear, whose input they share. Parts with one scale each give it to their rows,
    unless it is the same for all."""
    first = parts[0]
    if len(parts) == 1:
        return first
    one_scale = first.scale.ndim == 0 and all(torch.equal(part.scale, first.scale) for part in parts)
    shared = [(part.input_scale, part.pre_quant_scale) for part in parts]
    if not all(_same(a, b) for part in shared for a, b in zip(part, shared[0], strict=True)):
        raise _damaged(stored, "scales of their own", "one scale for parts that the model joins")
    zero_points = [part.zero_point for part in parts if part.zero_point is not None]
    return Decoded(
        qweight=torch.cat([part.qweight for part in parts]),
        scale=first.scale if one_scale else torch.cat([_by_row(part) for part in parts]),
        zero_point=torch.cat(zero_points) if zero_points else None,
        input_scale=first.input_scale,
        pre_quant_scale=first.pre_quant_scale,
        input_order=first.input_order,
    )


def _by_row(part: Decoded) -> Tensor:
    return part.scale.expand(len(part.qweight)) if part.scale.ndim == 0 else part.scale


def order_by_group(group_I: Tensor) -> Tensor | None:
    """The input features sorted by their group, int32 [I]; None where they lie so already.

    Args:
        group_I: the group of each input feature.
    """
    if bool((group_I[1:] >= group_I[:-1]).all()):
        return None
    return group_I.argsort(stable=True).to(torch.int32)


def has_equal_groups(group_I: Tensor, size: int) -> bool:
    """Whether each group, from 0 on, has `size` inputs.

    Args:
        group_I: the group of each input feature.
    """
    groups = torch.arange(len(group_I), dtype=torch.int64) // size
    return torch.equal(group_I.long().sort().values, groups)


def split_size(in_features: int) -> int | None:
    """What groups one scale for each output feature is repeated for; None where none divides the inputs."""
    return next((size for size in SPLIT_GROUPS if in_features % size == 0), None)


def repeat_for_groups(values_O1: Tensor, in_features: int) -> Tensor:
    """One scale or zero point for each output feature as one for each group of `split_size`, [out, groups]."""
    return values_O1.repeat_interleave(in_features // (split_size(in_features) or in_features), 1)


def _same(a: Tensor | None, b: Tensor | None) -> bool:
    return (a is None) == (b is None) and (a is None or b is None or torch.equal(a, b))


def unsupported(what: str, where: object, expected: object, found: object, fix: str | None = None) -> CheckpointError:
    """The error for a variant of a format that this program does not read."""
    return CheckpointError(what, where=where, expected=expected, found=found, fix=fix or ORIGINAL)


def _damaged(stored: Mapping[str, StoredTensor], found: str, expected: str) -> CheckpointError:
    tensor = next(iter(stored.values()))
    return CheckpointError(
        "A quantized linear is damaged.",
        where=f"{tensor.name.rpartition('.')[0]} in {tensor.file.name}",
        expected=expected,
        found=found,
        fix="download or copy the checkpoint again",
    )
