"""Linears whose quantized values follow from the checkpoint and their scales, and so are stored nowhere else.

Rounding to nearest has one result for a weight and its scales: a calibration keeps the scales, and whoever needs the
values rounds the checkpoint's weight again, which is faster than reading them from a disk. What AWQ, SmoothQuant and
GPTQ make does not follow from a weight as it is in the checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from r1v_export.model_spec import ModelSpec
from r1v_export.quantization.groups import linear_groups
from r1v_export.quantization.quant_params import QuantParams
from r1v_export.quantization.recipe import Awq, RoundToNearest, Scheme, SmoothQuant


def rounded_linears(spec: ModelSpec, schemes: Mapping[str, Scheme]) -> frozenset[str]:
    """The linears whose quantized values are the checkpoint's weights rounded to nearest."""
    rescaled = {
        tensor
        for group in linear_groups(spec)
        if group.smooth_layer and _is_smoothed(schemes.get(group.linears[0]))
        for tensor in (*group.smooth_layer.tensors, *(f"{linear}.weight" for linear in group.linears))
    }
    nearest = (name for name, scheme in schemes.items() if isinstance(scheme.weights, RoundToNearest))
    return frozenset(name for name in nearest if f"{name}.weight" not in rescaled)


def round_weight(weight_OI: Tensor, scheme: Scheme, scale: Tensor, zero_point: Tensor | None) -> Tensor:
    """The quantized values [O, I] of a weight of any floating dtype.

    Args:
        scale, zero_point: of `QuantizedLinear`.
    """
    return QuantParams(scheme.weights.type, scale.reshape(len(scale), -1), zero_point).qweight(weight_OI)


def _is_smoothed(scheme: Scheme | None) -> bool:
    return scheme is not None and isinstance(scheme.weights, Awq | SmoothQuant)
