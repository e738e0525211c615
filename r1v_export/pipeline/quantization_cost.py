"""How long quantizing the linears of a block takes, from what its algorithms compute.

Operations of products and passes over the weights are counted as the algorithms make them; the machine's rates are
measured. A pass costs as much as rounding to nearest, which reads a weight, finds its scale and rounds it.
Shape letters: O output features, I input features.
"""

from __future__ import annotations

from collections.abc import Mapping

from r1v_export.config import Matmul
from r1v_export.pipeline.rates import Rates
from r1v_export.quantization.algorithms.awq import SEARCH_ROWS
from r1v_export.quantization.algorithms.clipping import SHRINKS
from r1v_export.quantization.algorithms.gptq import BLOCK
from r1v_export.quantization.groups import LinearGroup
from r1v_export.quantization.recipe import Awq, Gptq, Imported, RoundToNearest, Scheme, SmoothQuant

_RACED = 0.4
"""Of the rows that AWQ's search would evaluate with every scale, those that it evaluates: losing scales are given up.
0.33 with random weights of true width, 0.3 to 0.7 in r1v-nano."""
_SHRINK_PASSES = 1
"""For each scale that clipping tries, its product with the Gram matrix apart."""
_GPTQ_PASSES = 6
"""Column by column, products apart."""
_IMPORTED_PASSES = 4
"""Unpacked, reordered and checked; 3 by one machine measured, 5 by another."""
_SMOOTHQUANT_PASSES = 6
_SCALE_PASSES = 1
"""Scales alone: the values follow from them."""
_PACKING_PASSES = 1
"""Two four-bit values into a byte."""


def quantizing_s(
    group: LinearGroup,
    schemes: Mapping[str, Scheme],
    shapes: Mapping[str, tuple[int, int]],
    rates: Rates,
    matmul: Matmul = "float32",
) -> float:
    """Seconds in which the linears that read one tensor are quantized.

    Args:
        schemes: of the linears of which a calibration finds anything.
        shapes: [O, I] of every linear.
        matmul: what GPTQ and clipping by outputs round the operands of their large products to; all else is float32.
    """
    quantized = [linear for linear in group.linears if linear in schemes]
    flops = _shared_flops(group, [schemes[linear] for linear in quantized], sum(shapes[x][0] for x in group.linears))
    seconds = flops / rates.flops("float32")
    for linear in quantized:
        out_features, in_features = shapes[linear]
        products, within, passes = _of_each_weight(schemes[linear], in_features)
        multiplied = products / rates.flops(matmul) + within / rates.flops("float32")
        rounded = rates.rounded(schemes[linear].weights.type)
        seconds += out_features * in_features * (multiplied + passes / rounded)
    return seconds


def _shared_flops(group: LinearGroup, schemes: list[Scheme], out_features: int) -> float:
    """Operations for all linears together: AWQ's search, and GPTQ's factorization, in products of whole blocks."""
    flops, square = 0.0, group.in_features**2
    searches = [scheme.weights for scheme in schemes if isinstance(scheme.weights, Awq)]
    if searches and group.smooth_layer is not None:
        flops += _RACED * (searches[0].grid + 1) * min(SEARCH_ROWS, out_features) * square
    if any(isinstance(scheme.weights, Gptq) for scheme in schemes):
        flops += group.in_features * square / 2
    return flops


def _of_each_weight(scheme: Scheme, in_features: int) -> tuple[float, float, float]:
    """Operations for each weight in products that `matmul` rounds, and in others, and passes over it."""
    weights, products, passes = scheme.weights, 0.0, 0.0
    if isinstance(weights, Awq | Gptq | RoundToNearest) and weights.clip:
        passes += len(SHRINKS) * _SHRINK_PASSES
        if isinstance(weights, Awq | Gptq):
            products += len(SHRINKS) * 2 * (weights.group_size or in_features / 2)
    if isinstance(weights, Gptq):
        within = min(BLOCK, in_features)  # a column's error reaches those of its own block in float32
        return products + in_features - within, within, passes + _GPTQ_PASSES
    if isinstance(weights, Imported):
        return products, 0.0, _IMPORTED_PASSES
    return products, 0.0, passes + (_SMOOTHQUANT_PASSES if isinstance(weights, SmoothQuant) else _SCALE_PASSES)


def decoding_passes(scheme: Scheme) -> float:
    """Passes that whoever writes a linear's quantized values makes over them, if no calibration stores them."""
    if isinstance(scheme.weights, Gptq):
        return 0.0
    passes = _IMPORTED_PASSES if isinstance(scheme.weights, Imported) else 1
    return passes + (_PACKING_PASSES if scheme.weights.type in ("int4", "uint4") else 0)
