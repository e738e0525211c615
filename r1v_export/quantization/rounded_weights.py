"""Linears whose quantized values, or their scales too, follow from the checkpoint and what else a calibration holds,
and so are stored nowhere else.

Rounding to nearest has one result for a weight and its scales: a calibration keeps the scales, and whoever needs the
values rounds the checkpoint's weight again, which is faster than reading them from a disk. AWQ and SmoothQuant round
to nearest, too, after scales have been moved into the weight; these are kept as well, see `smoothing`. Imported values
are the checkpoint's own. What GPTQ makes follows from nothing that is kept.

Where nothing but the weight decides the scales, they are not kept either: whoever writes the values finds both in one
pass over the weight, and a build reads it once.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from r1v_export.model_spec import ModelSpec
from r1v_export.quantization.groups import linear_groups, smoothed_tensors
from r1v_export.quantization.number_formats import QWEIGHT_DTYPES
from r1v_export.quantization.quant_params import QuantParams
from r1v_export.quantization.recipe import Gptq, Imported, RoundToNearest, Scheme
from r1v_export.quantization.smoothing import Smoothing, smoothed_groups

_VALUES_AT_ONCE = 1 << 23
"""Of a weight that is rescaled before it is rounded."""


def rounded_linears(schemes: Mapping[str, Scheme]) -> frozenset[str]:
    """The linears whose quantized values are the checkpoint's weights, rescaled or not, rounded to nearest."""
    return frozenset(name for name, scheme in schemes.items() if not isinstance(scheme.weights, Gptq | Imported))


def uncalibrated_linears(spec: ModelSpec, schemes: Mapping[str, Scheme]) -> frozenset[str]:
    """The linears of which a calibration finds nothing: their scales follow from the checkpoint's weights alone.

    Groups are taken whole, because a scale per tensor counts all of a group's linears.
    """
    rescaled = {tensor for group in smoothed_groups(spec, schemes) for tensor in smoothed_tensors(group)}
    found = set[str]()
    for group in linear_groups(spec):
        linears = [name for name in group.linears if name in schemes]
        if all(_has_own_scales(schemes[name]) and f"{name}.weight" not in rescaled for name in linears):
            found.update(linears)
    return frozenset(found)


def _has_own_scales(scheme: Scheme) -> bool:
    """Whether a linear has the scales that just cover its weight, and no static scale of its input."""
    weights, inputs = scheme.weights, scheme.inputs
    covers = isinstance(weights, RoundToNearest) and not weights.clip and weights.granularity != "tensor"
    return covers and (inputs is None or inputs.mode == "dynamic")


def stored_linears(schemes: Mapping[str, Scheme]) -> frozenset[str]:
    """The linears whose quantized values a calibration must store."""
    return frozenset(name for name, scheme in schemes.items() if isinstance(scheme.weights, Gptq))


def round_weight(
    name: str, weight_OI: Tensor, scheme: Scheme, scale: Tensor, zero_point: Tensor | None, smoothing: Smoothing
) -> Tensor:
    """The quantized values [O, I] of a linear, by its name, from the checkpoint's weight of any floating dtype.

    Args:
        scale, zero_point: of `QuantizedLinear`.
        smoothing: of the model's calibration.
    """
    params = QuantParams(scheme.weights.type, scale.reshape(len(scale), -1), zero_point)
    weight_name = f"{name}.weight"
    if not smoothing.rescales(weight_name):
        return params.qweight(weight_OI)
    qweight_OI = torch.empty(weight_OI.shape, dtype=QWEIGHT_DTYPES[scheme.weights.type])
    rows_at_once = max(1, _VALUES_AT_ONCE // weight_OI.shape[1])
    for start in range(0, len(weight_OI), rows_at_once):
        rows = slice(start, min(start + rows_at_once, len(weight_OI)))
        qweight_OI[rows] = params.rows(rows).qweight(smoothing.rescaled(weight_name, weight_OI[rows], rows))
    return qweight_OI
