"""One block's linears quantized as the recipe says, from its weights and the statistics of their inputs.

First AWQ's and SmoothQuant's scales, moved from the layer that produces a tensor into the weights that read it: the
block computes the same function as before. Then every linear is rounded, with the statistics of its rescaled input.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from r1v_export.config import Matmul
from r1v_export.count import Count
from r1v_export.log_event import log_event
from r1v_export.quantization.algorithms.awq import search_scale
from r1v_export.quantization.algorithms.clipping import clipped_params
from r1v_export.quantization.algorithms.gptq import Compensation, compensation, gptq, grouped_order
from r1v_export.quantization.algorithms.rtn import one_scale, round_to_nearest, round_to_one_scale
from r1v_export.quantization.algorithms.smoothquant import smoothing_scale
from r1v_export.quantization.groups import LinearGroup, SmoothLayer, apply_smoothing, smoothed_tensors
from r1v_export.quantization.kv_scales import CacheType, KVScales, key_name, kv_scales, value_name
from r1v_export.quantization.number_formats import QWEIGHT_DTYPES, RANGES
from r1v_export.quantization.quant_params import QuantParams
from r1v_export.quantization.quantized_block import QuantizedBlock
from r1v_export.quantization.quantized_linear import QuantizedLinear, absmax, not_finite, scale_for
from r1v_export.quantization.recipe import Awq, Gptq, RoundToNearest, Scheme, SmoothQuant
from r1v_export.quantization.smoothing import is_smoothed
from r1v_export.quantization.statistics.activation_statistics import BlockStatistics
from r1v_export.quantization.statistics.range_estimators import Observer, estimate_range

_LOG = logging.getLogger(__name__)


def needs_gram(scheme: Scheme) -> bool:
    """Whether the scheme's algorithm needs the Gram matrix of its input."""
    return isinstance(scheme.weights, Awq | Gptq)


def quantize_block(
    groups: Sequence[LinearGroup],
    schemes: Mapping[str, Scheme],
    tensors: Mapping[str, Tensor],
    statistics: BlockStatistics,
    observer: Observer,
    kv_cache: CacheType | None = None,
    rounded: Collection[str] = (),
    matmul: Matmul = "float32",
) -> QuantizedBlock:
    """Quantize the linears of one block, on the device that its tensors are on.

    Args:
        groups: the block's, of `groups.linear_groups`.
        schemes: of `recipe.resolve`; linears without one stay as they are.
        tensors: the block's weights, biases and norms by checkpoint name, any floating dtype; not written to. Those
            that are only rounded to nearest are read a few rows at a time.
        statistics: by group name; Gram matrices where `needs_gram`. Empty for schemes that need none.
        observer: how ranges of static inputs are chosen. Inputs that were rescaled take absmax: a histogram cannot be
            rescaled channel by channel.
        kv_cache: what a decoder layer's cache is stored in; None leaves it unchanged.
        rounded: linears that are to have scales alone, their quantized values on device "meta", because they follow:
            `rounded_weights.rounded_linears`.
        matmul: what GPTQ and clipping by outputs round the operands of their large products to.

    Raises:
        CheckpointError: a weight is NaN or infinite.
    """
    rescaled = dict(tensors)
    _check_finite(rescaled, groups, schemes)
    smoothed = _apply_smoothing_scales(groups, schemes, rescaled, statistics)
    linears: dict[str, QuantizedLinear] = {}
    for group in groups:
        quantized = [linear for linear in group.linears if linear in schemes]
        if not quantized:
            continue
        largest = _largest(group, schemes, rescaled)
        source = _WeightInput(statistics.grams.get(group.name), smoothed.get(group.name), matmul)
        for linear in quantized:
            scheme = schemes[linear]
            weight = rescaled[f"{linear}.weight"]
            rounding = _scales_alone if linear in rounded else _round
            made = rounding(weight, scheme, source, largest)
            _require_finite(f"{linear}.weight", weight, made.scale)
            linears[linear] = _quantize_input(made, scheme, group, statistics, smoothed.get(group.name), observer)
        _log_group(group, {linear: linears[linear] for linear in quantized}, statistics, smoothed.get(group.name))
    rewritten = {
        name for group in groups if group.name in smoothed and group.smooth_layer for name in group.smooth_layer.tensors
    }
    overrides = {name: rescaled[name] for name in sorted(rewritten) if name.removesuffix(".weight") not in linears}
    return QuantizedBlock(linears, overrides, _cache_scales(groups, statistics, smoothed, kv_cache), smoothed)


def _log_group(
    group: LinearGroup, linears: Mapping[str, QuantizedLinear], statistics: BlockStatistics, scale_I: Tensor | None
) -> None:
    """Log what became of a group: its smoothing scale, and the range of its input against the largest magnitude."""
    if not _LOG.isEnabledFor(logging.DEBUG):
        return
    fields: dict[str, Any] = {"group": group.name, "linears": Count(len(linears), "linear")}
    message = "%(group)s: %(linears)s"
    if scale_I is not None:
        message += ", smoothing scales from %(smallest_scale).3g to %(largest_scale).3g"
        fields |= {"smallest_scale": float(scale_I.min()), "largest_scale": float(scale_I.max())}
    first = next(iter(linears.values()))
    if first.input_type is not None and first.input_scale is not None:
        message += ", input range %(input_range).4g, largest input before smoothing %(input_absmax).4g"
        fields["input_range"] = float(first.input_scale) * RANGES[first.input_type][1]
        fields["input_absmax"] = statistics.activations[group.name].absmax
    log_event(_LOG, logging.DEBUG, message, **fields)


def _check_finite(rescaled: Mapping[str, Tensor], groups: Sequence[LinearGroup], schemes: Mapping[str, Scheme]) -> None:
    """Check what scales are moved between, and norms. Of all other weights the scales that are found for them show it,
    which spares a pass over them."""
    for group in groups:
        moved = is_smoothed(group, schemes)
        names = [f"{linear}.weight" for linear in group.linears] if moved else []
        sources = group.smooth_layer.tensors if group.smooth_layer else ()
        names += [name for name in sources if moved or rescaled[name].ndim == 1]
        for name in names:
            _require_finite(name, rescaled[name], absmax(rescaled[name]))


def _require_finite(name: str, weight: Tensor, found: Tensor) -> None:
    """Raise for a weight whose largest magnitude, or one of whose scales, is NaN or infinite."""
    if not bool(found.isfinite().all()):
        raise not_finite(name, weight)


def _apply_smoothing_scales(
    groups: Sequence[LinearGroup],
    schemes: Mapping[str, Scheme],
    rescaled: dict[str, Tensor],
    statistics: BlockStatistics,
) -> dict[str, Tensor]:
    """Find the scales of AWQ and SmoothQuant, move them in `rescaled`, and return them by group name."""
    smoothed: dict[str, Tensor] = {}
    for group in groups:
        if not is_smoothed(group, schemes):
            continue
        options = schemes[group.linears[0]].weights
        assert group.smooth_layer is not None, "is_smoothed says so"
        assert isinstance(options, Awq | SmoothQuant), "likewise"
        rescaled |= {name: rescaled[name].float() for name in smoothed_tensors(group)}
        weights = [rescaled[f"{linear}.weight"] for linear in group.linears]
        smoothed[group.name] = _smoothing_scale(group, group.smooth_layer, options, weights, statistics)
        apply_smoothing(group, smoothed[group.name], rescaled)
    return smoothed


def _smoothing_scale(
    group: LinearGroup,
    smooth_layer: SmoothLayer,
    options: Awq | SmoothQuant,
    weights: list[Tensor],
    statistics: BlockStatistics,
) -> Tensor:
    collected, device = statistics.activations[group.name], weights[0].device
    if isinstance(options, SmoothQuant):
        return smooth_layer.shared(smoothing_scale(weights, collected.channel_absmax.to(device), options.alpha))
    mean_I = smooth_layer.shared(collected.channel_mean.to(device))
    gram_II = statistics.grams[group.name].to(device)
    return search_scale(weights, gram_II, mean_I, options.type, options.group_size, options.grid)


class _WeightInput:
    """What quantizing the linears of one group shares: of the tensor that they read.

    Args:
        gram_II: its Gram matrix; None where no algorithm needs it.
        scale_I: what the tensor has been divided by since; None without smoothing.
        matmul: of `quantize_block`.
    """

    def __init__(self, gram_II: Tensor | None, scale_I: Tensor | None, matmul: Matmul) -> None:
        self._gram_II, self.scale_I = gram_II, scale_I
        self.products: torch.dtype = getattr(torch, matmul)
        self._shared: tuple[Gptq, Tensor, Tensor | None, Compensation] | None = None

    def gram(self, device: torch.device) -> Tensor:
        """The Gram matrix, not divided by the scale."""
        assert self._gram_II is not None, "the caller calibrates with Gram matrices where needs_gram says so"
        return self._gram_II.to(device)

    def for_gptq(self, options: Gptq, device: torch.device) -> tuple[Tensor, Tensor | None, Compensation]:
        """The Gram matrix of the weight's columns, their order (None is that of the inputs) and what GPTQ needs of
        them; computed once for linears of equal options."""
        assert self.scale_I is None, "the recipe's own check: who moves scales quantizes all linears of the group"
        if self._shared is None or self._shared[0] != options:
            self._shared = None  # one at a time: they are as large as the Gram matrix
            gram_II, order_I = self.gram(device), None
            if options.act_order == "group":
                assert options.group_size is not None, "the recipe's own check"
                order_I = grouped_order(gram_II, options.group_size)
                gram_II = gram_II[order_I][:, order_I]
            shared = compensation(gram_II, options.damping, options.act_order != "none", self.products)
            self._shared = (options, gram_II, order_I, shared)
        return self._shared[1:]


def _largest(group: LinearGroup, schemes: Mapping[str, Scheme], rescaled: Mapping[str, Tensor]) -> Tensor | None:
    """The largest magnitude of the weights that share one scale; None if the group's have scales of their own."""
    shared = [linear for linear in group.linears if linear in schemes]
    if all(schemes[linear].weights.granularity != "tensor" for linear in shared):
        return None
    weights = {name: rescaled[name] for name in (f"{linear}.weight" for linear in shared)}
    found = {name: absmax(weight).float() for name, weight in weights.items()}
    for name, weight in weights.items():
        _require_finite(name, weight, found[name])
    return torch.stack(list(found.values())).max()


def _scales_alone(weight: Tensor, scheme: Scheme, source: _WeightInput, largest: Tensor | None) -> QuantizedLinear:
    """What `_round` makes by rounding to nearest, its quantized values on device "meta"."""
    options = scheme.weights
    if isinstance(options, Awq):
        params = _params(weight, options, source.gram(weight.device), source)
    elif options.granularity == "tensor":
        assert largest is not None
        params = one_scale(weight, options.type, largest)
    elif isinstance(options, RoundToNearest) and options.clip:
        params = clipped_params(weight, options.type, options.group_size)
    else:
        params = QuantParams.from_weight(weight, options.type, options.group_size)
    return params.linear(torch.empty(weight.shape, dtype=QWEIGHT_DTYPES[options.type], device="meta"))


def _round(weight: Tensor, scheme: Scheme, source: _WeightInput, largest: Tensor | None) -> QuantizedLinear:
    """The weight rounded by the scheme's algorithm; `largest` is that of the group's weights where they share it."""
    options = scheme.weights
    if isinstance(options, Gptq):
        return _round_by_gptq(weight.float(), source, options)
    if isinstance(options, Awq):
        weight = weight.float()
        params = _params(weight, options, source.gram(weight.device), source)
        return params.linear(params.qweight(weight))
    if options.granularity == "tensor":
        assert largest is not None
        return round_to_one_scale(weight, options.type, largest)
    clip = isinstance(options, RoundToNearest) and options.clip
    return round_to_nearest(weight, options.type, options.group_size, clip)


def _round_by_gptq(weight_OI: Tensor, source: _WeightInput, options: Gptq) -> QuantizedLinear:
    gram_II, order_I, shared = source.for_gptq(options, weight_OI.device)
    if order_I is not None:
        weight_OI = weight_OI[:, order_I]
    linear = gptq(weight_OI, _params(weight_OI, options, gram_II, source), shared)
    return linear if order_I is None else replace(linear, input_order=order_I.to(torch.int32))


def _params(weight_OI: Tensor, options: Awq | Gptq, gram_II: Tensor, source: _WeightInput) -> QuantParams:
    """Scales of a weight, with the Gram matrix of its columns."""
    if options.clip:
        scale_I, products = source.scale_I, source.products
        return clipped_params(weight_OI, options.type, options.group_size, gram_II, scale_I, products)
    return QuantParams.from_weight(weight_OI, options.type, options.group_size)


def _quantize_input(
    linear: QuantizedLinear,
    scheme: Scheme,
    group: LinearGroup,
    statistics: BlockStatistics,
    scale_I: Tensor | None,
    observer: Observer,
) -> QuantizedLinear:
    """The linear with how its input is quantized; `scale_I` is what that input was divided by."""
    if scheme.inputs is None:
        return linear
    if scheme.inputs.mode == "dynamic":
        return replace(linear, input_type=scheme.inputs.type)
    collected = statistics.activations[group.name]
    if scale_I is None:
        largest = torch.tensor(estimate_range(collected, observer, scheme.inputs.type))
    else:
        largest = (collected.channel_absmax.to(scale_I.device) / scale_I).max()
    scale = scale_for(largest, scheme.inputs.type).to(linear.scale.device)
    return replace(linear, input_type=scheme.inputs.type, input_scale=scale)


def _cache_scales(
    groups: Sequence[LinearGroup], statistics: BlockStatistics, smoothed: Mapping[str, Tensor], kind: CacheType | None
) -> KVScales | None:
    """Scales of the block's cache, if it has one; values are as much smaller as the rows of v_proj have become."""
    block = groups[0].block
    if kind is None or key_name(block) not in statistics.activations:
        return None
    value_absmax = statistics.activations[value_name(block)].channel_absmax
    for group in groups:
        if group.smooth_layer is not None and group.smooth_layer.produces_values and group.name in smoothed:
            value_absmax = value_absmax / group.smooth_layer.to_source_channels(smoothed[group.name]).to(
                value_absmax.device
            )
    return kv_scales(block, kind, statistics.activations[key_name(block)].channel_absmax, value_absmax)
