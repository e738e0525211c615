"""Compare a calibration with the weights it was made from, where its algorithm leaves no freedom.

Rounding to nearest has one correct result: the scale that just covers the original weight, and the weight quantized
with it. Static input scales from the largest magnitude have one, too. Algorithms that move scales between tensors (AWQ,
SmoothQuant) or compensate errors (GPTQ) have none; the tolerances of the parity gate cover them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from r1v_export.count import Count
from r1v_export.errors import ParityError
from r1v_export.quantization.algorithms.rtn import round_to_nearest, round_to_one_scale
from r1v_export.quantization.artifact.artifact import Artifact
from r1v_export.quantization.groups import linear_groups
from r1v_export.quantization.number_formats import RANGES
from r1v_export.quantization.quantized_linear import QuantizedLinear, absmax
from r1v_export.quantization.recipe import RoundToNearest, Scheme

_ROW_TOLERANCE = 0.1
"""Fraction of a row's quantized values that may differ: another device can round a value halfway between two neighbors
to the other one; a wrong scale changes most of a row."""


_SCALE_TOLERANCE = 1e-3
"""Relative difference that a scale may have, for the same reason."""


_VALUES_AT_ONCE = 1 << 20
"""Of two quantized weights that are compared."""


def require_own_scales(model: nn.Module, artifact: Artifact) -> None:
    """Require scales that follow from the weights and the calibration statistics.

    Args:
        model: with the checkpoint's own weights.

    Raises:
        ParityError: a scale does not; the error names the linear.
    """
    for name in artifact.schemes:
        require_own_scale(artifact, name, partial(_weight, model))


def require_own_scale(
    artifact: Artifact, name: str, read_weight: Callable[[str], Tensor], linear: QuantizedLinear | None = None
) -> None:
    """Require scales of one linear that follow from its weight and the calibration statistics.

    Args:
        name: of the linear.
        read_weight: returns the checkpoint's own weight [out, in], a float, of a linear.
        linear: the artifact's, where it is at hand.

    Raises:
        ParityError: a scale does not.
    """
    scheme = artifact.schemes[name]
    weights = scheme.weights
    if artifact.overrides or not isinstance(weights, RoundToNearest) or weights.clip:
        return
    group = next(group for group in linear_groups(artifact.spec) if name in group.linears)
    neighbors = [other for other in group.linears if other in artifact.schemes]
    shared = [read_weight(other) for other in neighbors] if weights.granularity == "tensor" else []
    linear = artifact.linear(name) if linear is None else linear
    wrong = _wrong_rows(linear, read_weight(name), scheme, shared)
    if wrong:
        raise _wrong(
            artifact,
            name,
            "weight scales that give the original's quantized values",
            f"{Count(wrong, 'row')} of others",
        )
    inputs = artifact.stats.inputs.get(group.name)
    found = artifact.parameters(name)
    if found.input_scale is not None and inputs is not None and artifact.recipe.observer.kind == "absmax":
        expected = inputs.absmax / RANGES[found.input_type or "fp8"][1]
        if not math.isclose(float(found.input_scale), expected, rel_tol=1e-3):
            raise _wrong(artifact, name, f"an input scale of {expected:.4g}", f"{float(found.input_scale):.4g}")


def _weight(model: nn.Module, linear: str) -> Tensor:
    return model.get_submodule(linear).get_parameter("weight").detach().cpu()


def _wrong_rows(linear: QuantizedLinear, weight: Tensor, scheme: Scheme, neighbors: Sequence[Tensor]) -> int:
    """How many output channels have another scale than the original weight gives, or differ from what it is rounded to
    in more than the allowed fraction of quantized values.

    Args:
        neighbors: weights of the linears that share its input, itself included: they share a scale per tensor.
    """
    weights = scheme.weights
    if weights.granularity == "tensor":
        expected = round_to_one_scale(
            weight, weights.type, torch.stack([absmax(other).float() for other in neighbors]).max()
        )
    else:
        expected = round_to_nearest(weight, weights.type, weights.group_size)
    differing = _unequal_in_rows(linear.qweight, expected.qweight) > _ROW_TOLERANCE * weight.shape[1]
    scales = torch.isclose(linear.scale, expected.scale, rtol=_SCALE_TOLERANCE, atol=0).reshape(len(weight), -1)
    return int((differing | ~scales.all(1)).sum())


def _unequal_in_rows(a_OI: Tensor, b_OI: Tensor) -> Tensor:
    """How many quantized values differ in each row, [O]; a few rows at a time, as they are widened to be compared and
    to be counted."""
    rows = max(1, _VALUES_AT_ONCE // a_OI.shape[1])
    pairs = zip(a_OI.split(rows), b_OI.split(rows), strict=True)
    return torch.cat([(a.float() != b.float()).sum(1) for a, b in pairs])


def _wrong(artifact: Artifact, name: str, expected: str, found: str) -> ParityError:
    return ParityError(
        f"The calibration of {name} is not that of its weights and inputs.",
        where=artifact.folder,
        expected=expected,
        found=found,
        fix="calibrate again; a scale was changed after calibration",
    )
