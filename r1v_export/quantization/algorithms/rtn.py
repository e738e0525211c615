"""Round to nearest: every weight becomes the nearest representable value, from the weights alone."""

from __future__ import annotations

from torch import Tensor

from r1v_export.quantization.algorithms.clipping import clipped_params
from r1v_export.quantization.number_formats import WeightType
from r1v_export.quantization.quant_params import QuantParams
from r1v_export.quantization.quantized_linear import QuantizedLinear, scale_for


def round_to_nearest(
    weight_OI: Tensor, kind: WeightType, group_size: int | None = None, clip: bool = False
) -> QuantizedLinear:
    """One scale per output channel, or per group of `group_size` inputs.

    Args:
        weight_OI: [out, in] of any floating dtype; computed in float32.
        clip: shrink each scale to where the squared error of the weights is least, see `clipping`.
    """
    if not clip:
        return QuantParams.round_to_nearest(weight_OI, kind, group_size)
    params = clipped_params(weight_OI, kind, group_size)
    return params.linear(params.qweight(weight_OI))


def round_to_one_scale(weight_OI: Tensor, kind: WeightType, absmax: Tensor) -> QuantizedLinear:
    """One scale for the whole weight, for engines that take no more; stored as equal scales of all channels.

    Args:
        absmax: scalar []; the largest magnitude of this weight and of those that engines fuse it with.
    """
    params = one_scale(weight_OI, kind, absmax)
    return params.linear(params.qweight(weight_OI))


def one_scale(weight_OI: Tensor, kind: WeightType, absmax: Tensor) -> QuantParams:
    """The parameters of `round_to_one_scale`, of a weight [out, in]."""
    return QuantParams(kind, scale_for(absmax, kind).expand(weight_OI.shape[0], 1).contiguous(), None)
