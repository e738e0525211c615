"""How quantized values lie in a file: as calibrations have them, or as a graph or a checkpoint does, so that one file
is the calibration's and theirs.

    layout       tensors of a linear          4-bit values                                 8-bit values
    CALIBRATION  {linear}.qweight             uint8 [out, in / 2], inputs two to a byte    [out, in]
    GRAPH        {linear}.weight.T.qweight    uint8 [in * out / 2], outputs two to a byte  [in, out]
    UNIFIED      {stored}.weight              uint8 [out / 2, in], outputs two to a byte   none
    PACKED       {stored}.weight_packed       int32 [out, in / 8], inputs in their own     none
                                              order, as 0..15
    PLAIN        {stored}.weight              none                                         int8 [out, in]

{linear} is the checkpoint name of a module, {stored} each name under which its rows are stored. The even one of two
values in a byte is in the low half.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from r1v_export.checkpoint.names import stored_names
from r1v_export.checkpoint.quantized.int4_packing import pack_pairs, unpack, unpack_pairs
from r1v_export.checkpoint.tensor_file import StoredTensor
from r1v_export.model_spec import ModelSpec
from r1v_export.quantization.number_formats import QWEIGHT_DTYPES, WeightType
from r1v_export.quantization.quantized_linear import QuantizedLinear

FOUR_BITS = ("int4", "uint4")
_PER_WORD = 8


@dataclass(frozen=True)
class Values:
    """What a layout needs to know of a linear: how large it is, what its values are, and in which order.

    input_order: of `QuantizedLinear`.
    """

    shape: tuple[int, int]
    kind: WeightType
    input_order: Tensor | None = None


class QweightLayout(ABC):
    """One way of storing quantized values."""

    dtype: ClassVar[torch.dtype | None] = None
    """Of its tensors, where their names alone do not tell them from another layout's or from a weight that an import
    rewrote, which is float32."""

    @abstractmethod
    def names(self, linear: str, spec: ModelSpec) -> tuple[str, ...]:
        """The tensors of a linear; several have equal parts of the rows of `stored`."""

    @abstractmethod
    def stored(self, values: Values) -> tuple[torch.dtype, tuple[int, ...]] | None:
        """Dtype and shape of the tensors of a linear, joined along their rows; None if it does not hold such values."""

    @abstractmethod
    def encode(self, linear: QuantizedLinear) -> Tensor:
        """The values as they are stored, all rows."""

    @abstractmethod
    def decode(self, stored: Tensor, values: Values) -> Tensor:
        """The inverse of `encode`: [out, in], of QWEIGHT_DTYPES."""

    def tensors(self, name: str, linear: QuantizedLinear, spec: ModelSpec) -> dict[str, Tensor]:
        """What is stored of a linear, by tensor name."""
        names = self.names(name, spec)
        return dict(zip(names, self.encode(linear).chunk(len(names)), strict=True))

    def problem(self, found: Sequence[StoredTensor], values: Values) -> tuple[str, str] | None:
        """What is expected and found of the tensors of a linear, if that differs."""
        expected = self.stored(values)
        if expected is None:
            return "values of another type", f"{values.kind} as {found[0].name}"
        dtype, (rows, *others) = expected
        part = (dtype, (rows // len(found), *others))
        for tensor in found:
            if (tensor.dtype, tensor.shape) != part:
                return f"quantized values {part[0]} {part[1]}", f"{tensor.dtype} {tensor.shape}"
        return None


class _Calibration(QweightLayout):
    def names(self, linear: str, spec: ModelSpec) -> tuple[str, ...]:
        return (f"{linear}.qweight",)

    def stored(self, values: Values) -> tuple[torch.dtype, tuple[int, ...]] | None:
        out_features, in_features = values.shape
        if values.kind in FOUR_BITS:
            return torch.uint8, (out_features, in_features // 2)
        return QWEIGHT_DTYPES[values.kind], values.shape

    def encode(self, linear: QuantizedLinear) -> Tensor:
        return pack_pairs(linear.qweight) if linear.weight_type in FOUR_BITS else linear.qweight

    def decode(self, stored: Tensor, values: Values) -> Tensor:
        return unpack_pairs(stored, values.kind == "int4") if values.kind in FOUR_BITS else stored


class _Graph(QweightLayout):
    """The bytes of an initializer [in, out] of an ONNX graph."""

    def names(self, linear: str, spec: ModelSpec) -> tuple[str, ...]:
        return (f"{linear}.weight.T.qweight",)  # of `apply.onnx`

    def stored(self, values: Values) -> tuple[torch.dtype, tuple[int, ...]] | None:
        out_features, in_features = values.shape
        if values.kind in FOUR_BITS:
            return torch.uint8, (in_features * out_features // 2,)
        return QWEIGHT_DTYPES[values.kind], (in_features, out_features)

    def encode(self, linear: QuantizedLinear) -> Tensor:
        qweight_IO = linear.qweight.t().contiguous()
        return pack_pairs(qweight_IO.view(-1, 2)).flatten() if linear.weight_type in FOUR_BITS else qweight_IO

    def decode(self, stored: Tensor, values: Values) -> Tensor:
        if values.kind in FOUR_BITS:
            stored = unpack_pairs(stored[None], values.kind == "int4").view(values.shape[::-1])
        return stored.t().contiguous()


class _Unified(QweightLayout):
    """As `checkpoint.quantized.unified` reads them."""

    dtype = torch.uint8

    def names(self, linear: str, spec: ModelSpec) -> tuple[str, ...]:
        return stored_names(f"{linear}.weight", spec)

    def stored(self, values: Values) -> tuple[torch.dtype, tuple[int, ...]] | None:
        out_features, in_features = values.shape
        return (torch.uint8, (out_features // 2, in_features)) if values.kind == "int4" else None

    def encode(self, linear: QuantizedLinear) -> Tensor:
        return pack_pairs(linear.qweight, axis=0)

    def decode(self, stored: Tensor, values: Values) -> Tensor:
        return (unpack(stored, 0, (0, 1)) ^ 8) - 8


class _Packed(QweightLayout):
    """As `checkpoint.quantized.compressed_tensors` reads the format `pack-quantized`."""

    def names(self, linear: str, spec: ModelSpec) -> tuple[str, ...]:
        return tuple(f"{name}_packed" for name in stored_names(f"{linear}.weight", spec))

    def stored(self, values: Values) -> tuple[torch.dtype, tuple[int, ...]] | None:
        out_features, in_features = values.shape
        return (torch.int32, (out_features, -(-in_features // _PER_WORD))) if values.kind in FOUR_BITS else None

    def encode(self, linear: QuantizedLinear) -> Tensor:
        values_OI = linear.by_input_feature(linear.qweight) + (8 if linear.weight_type == "int4" else 0)
        padded = torch.nn.functional.pad(values_OI, (0, -values_OI.shape[1] % _PER_WORD))
        return pack_pairs(padded).view(torch.int32)

    def decode(self, stored: Tensor, values: Values) -> Tensor:
        values_OI = unpack_pairs(stored.contiguous().view(torch.uint8), signed=False)[:, : values.shape[1]]
        columns_OI = values_OI if values.input_order is None else values_OI[:, values.input_order]
        return (columns_OI - 8 if values.kind == "int4" else columns_OI).contiguous()


class _Plain(QweightLayout):
    """As `checkpoint.quantized.compressed_tensors` reads the format `int-quantized`."""

    dtype = torch.int8

    def names(self, linear: str, spec: ModelSpec) -> tuple[str, ...]:
        return stored_names(f"{linear}.weight", spec)

    def stored(self, values: Values) -> tuple[torch.dtype, tuple[int, ...]] | None:
        return (torch.int8, values.shape) if values.kind == "int8" else None

    def encode(self, linear: QuantizedLinear) -> Tensor:
        return linear.qweight

    def decode(self, stored: Tensor, values: Values) -> Tensor:
        return stored


CALIBRATION, GRAPH, UNIFIED, PACKED, PLAIN = _Calibration(), _Graph(), _Unified(), _Packed(), _Plain()
_LAYOUTS = (CALIBRATION, GRAPH, PACKED, UNIFIED, PLAIN)


def layout_of(linear: str, tensors: Mapping[str, StoredTensor], spec: ModelSpec) -> QweightLayout | None:
    """The layout that a linear's quantized values have among tensors; None if they are not there."""
    for layout in _LAYOUTS:
        names = layout.names(linear, spec)
        if all(name in tensors and layout.dtype in (None, tensors[name].dtype) for name in names):
            return layout
    return None
