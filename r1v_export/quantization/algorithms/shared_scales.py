"""Scales shared by linears that engines run as one product: q/k/v, gate/up.

A fused product has one scale for its input, and in FP8 one for its weights. What calibration rounds with
`granularity: tensor` shares them already; what was rounded apart, or comes from elsewhere, is rounded again here:
with another scale but the same quantized values the weight would change.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from r1v_export.errors import UsageError
from r1v_export.log_event import log_event
from r1v_export.quantization.quantized_linear import QuantizedLinear, quantize

_LOG = logging.getLogger(__name__)


def has_one_scale(linears: Sequence[QuantizedLinear]) -> bool:
    """Whether every row of all these weights has the same scale."""
    first = linears[0].scale.flatten()[0]
    return all(bool((linear.scale == first).all()) for linear in linears)


def share_weight_scale(
    names: Sequence[str], linears: Sequence[QuantizedLinear], weights: Sequence[Tensor] | None = None
) -> tuple[QuantizedLinear, ...]:
    """The linears with one scale for all their rows: the largest that any of them has.

    Rows that have it keep their quantized values bit for bit; the others are rounded again, with a coarser scale.

    Args:
        names: of the linears, for errors.
        linears: FP8 or INT8, a scale per row or one per tensor (equal scales of all rows).
        weights: what they were rounded from, [out, in] each; rounds once instead of twice. If None, their
            dequantized values are rounded.

    Raises:
        UsageError: they are not quantized alike, or in groups.
    """
    check_alike(names, linears)
    if linears[0].group_size is not None:
        raise UsageError(
            "Linears with a scale per group of inputs cannot share one scale.",
            where=", ".join(names),
            expected="FP8 or INT8 weights",
            found=f"{linears[0].weight_type} in groups of {linears[0].group_size}",
            fix="let each have its own scales: remove what shares them from the recipe",
        )
    shared = torch.stack([linear.scale.max() for linear in linears]).max()
    message = "one weight scale for %(linears)s: %(scale).4g"
    log_event(_LOG, logging.INFO, message, linears=", ".join(names), scale=float(shared))
    originals = [None] * len(linears) if weights is None else weights
    return tuple(_rescaled(linear, shared, weight) for linear, weight in zip(linears, originals, strict=True))


def _rescaled(linear: QuantizedLinear, shared: Tensor, weight: Tensor | None) -> QuantizedLinear:
    other = linear.scale != shared
    qweight = linear.qweight.clone()
    rows = linear.qweight[other].float() * linear.scale[other, None] if weight is None else weight[other].float()
    qweight[other] = quantize(rows, shared, linear.weight_type)
    return replace(linear, qweight=qweight, scale=shared.expand_as(linear.scale).contiguous())


def share_input_scale(names: Sequence[str], linears: Sequence[QuantizedLinear]) -> tuple[QuantizedLinear, ...]:
    """The linears with one static scale of their common input: the largest, so that nothing saturates that did not.

    Linears without one (weight only, or a scale per token) come back as they are.

    Raises:
        UsageError: they are not quantized alike.
    """
    check_alike(names, linears)
    scales = [linear.input_scale for linear in linears if linear.input_scale is not None]
    if not scales:
        return tuple(linears)
    shared = torch.stack(scales).max()
    if any(bool(scale != shared) for scale in scales):
        message = "one input scale for %(linears)s: %(scale).4g"
        log_event(_LOG, logging.INFO, message, linears=", ".join(names), scale=float(shared))
    return tuple(replace(linear, input_scale=shared) for linear in linears)


def check_alike(names: Sequence[str], linears: Sequence[QuantizedLinear]) -> None:
    """Require linears that one fused product can hold.

    Raises:
        UsageError: they are quantized in different ways.
    """
    kinds = [describe(linear) for linear in linears]
    if len(set(kinds)) > 1:
        raise UsageError(
            "Linears that engines fuse are quantized in different ways.",
            where=", ".join(names),
            expected="one way for all of them",
            found="; ".join(kinds),
            fix="one rule of the recipe for all of them",
        )


def describe(linear: QuantizedLinear) -> str:
    """How a linear is quantized, in words: "int4 in groups of 128", "fp8, fp8 inputs with a scale per token"."""
    groups = "" if linear.group_size is None else f" in groups of {linear.group_size}"
    if linear.input_type is None:
        return f"{linear.weight_type}{groups}"
    inputs = "a scale per token" if linear.input_scale is None else "one scale"
    return f"{linear.weight_type}{groups}, {linear.input_type} inputs with {inputs}"
