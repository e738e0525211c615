"""Compare a calibration with the weights it was made from, where its algorithm leaves no freedom.

Rounding to nearest has one correct result: the original weight quantized with the calibration's scale. Static input
scales from the largest magnitude have one, too. Algorithms that move scales between tensors (AWQ, SmoothQuant) or
compensate errors (GPTQ) have none; the tolerances of the parity gate cover them.
"""

from __future__ import annotations

import math

from torch import Tensor, nn

from r1v_export.errors import ParityError
from r1v_export.quantization.artifact.artifact import Artifact
from r1v_export.quantization.groups import linear_groups
from r1v_export.quantization.number_formats import RANGES
from r1v_export.quantization.quantized_linear import QuantizedLinear, quantize
from r1v_export.quantization.recipe import RoundToNearest

_ROW_TOLERANCE = 0.1
"""Fraction of a row's quantized values that may differ: another device can round a value halfway between two neighbors
to the other one; a wrong scale changes most of a row."""


def require_own_scales(model: nn.Module, artifact: Artifact) -> None:
    """Require scales that follow from the weights and the calibration statistics.

    Args:
        model: with the checkpoint's own weights.

    Raises:
        ParityError: a scale does not; the error names the linear.
    """
    if artifact.overrides:
        return
    group_of = {linear: group.name for group in linear_groups(artifact.spec) for linear in group.linears}
    for name, scheme in artifact.schemes.items():
        weights = scheme.weights
        if not isinstance(weights, RoundToNearest) or weights.clip:
            continue
        linear, original = artifact.linear(name), model.get_submodule(name).get_parameter("weight")
        wrong = _wrong_rows(linear, original)
        if wrong:
            raise _wrong(
                artifact, name, "weight scales that give the original's quantized values", f"{wrong} rows of others"
            )
        inputs = artifact.stats.inputs.get(group_of[name])
        if linear.input_scale is not None and inputs is not None and artifact.recipe.observer.kind == "absmax":
            expected = inputs.absmax / RANGES[linear.input_type or "fp8"][1]
            if not math.isclose(float(linear.input_scale), expected, rel_tol=1e-3):
                raise _wrong(artifact, name, f"an input scale of {expected:.4g}", f"{float(linear.input_scale):.4g}")


def _wrong_rows(linear: QuantizedLinear, original: Tensor) -> int:
    """How many output channels differ from the original weight in more than the allowed fraction of quantized
    values."""
    weight, scale, zero_point = original.detach().float().cpu(), linear.scale, linear.zero_point
    if linear.group_size is None:
        qweight = quantize(weight, scale[:, None], linear.weight_type)
    else:
        groups = weight.unflatten(1, (-1, linear.group_size))
        point = None if zero_point is None else zero_point.float()[..., None]
        qweight = quantize(groups, scale[..., None], linear.weight_type, point).flatten(1)
    differing = (qweight.float() != linear.qweight.float()).float().mean(1)
    return int((differing > _ROW_TOLERANCE).sum())


def _wrong(artifact: Artifact, name: str, expected: str, found: str) -> ParityError:
    return ParityError(
        f"The calibration of {name} is not that of its weights and inputs.",
        where=artifact.folder,
        expected=expected,
        found=found,
        fix="calibrate again; a scale was changed after calibration",
    )
