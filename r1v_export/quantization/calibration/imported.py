"""A quantized checkpoint as a calibration artifact: its own scales, bit for bit. Its quantized values stay where they
are, and are read from the checkpoint.

A `pre_quant_scale` moves into the norm, or the unquantized linear, that produces the input, or else stays with the
linear.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.checkpoint.quantized.layout import ORIGINAL, Decoded, LinearLayout
from r1v_export.checkpoint.quantized.quantized_linears import Quantized
from r1v_export.count import Count
from r1v_export.errors import CheckpointError
from r1v_export.log_event import log_event
from r1v_export.progress import ProgressCallback, ignore_progress
from r1v_export.quantization.algorithms.shared_scales import share_input_scale
from r1v_export.quantization.artifact.documents import checkpoint_fingerprint, read_stats
from r1v_export.quantization.calibration.blocks import Block
from r1v_export.quantization.calibration.calibrate import Quantization, is_done
from r1v_export.quantization.calibration.key import CalibrationKey
from r1v_export.quantization.calibration.plan import CalibrationPlan
from r1v_export.quantization.calibration.resume import BlockRecord, open_resume_state
from r1v_export.quantization.calibration_stats import Stats
from r1v_export.quantization.groups import LinearGroup, linear_groups
from r1v_export.quantization.kv_scales import KVScales
from r1v_export.quantization.number_formats import InputType
from r1v_export.quantization.quantized_block import QuantizedBlock
from r1v_export.quantization.quantized_linear import QuantizedLinear
from r1v_export.quantization.recipe import GROUP_SIZES, Imported, Inputs, Recipe, Rule, Scheme

_LOG = logging.getLogger(__name__)


def imported_recipe(checkpoint: Checkpoint) -> Recipe:
    """What a quantized checkpoint's linears are, as a recipe: one rule for each way of quantizing.

    Raises:
        CheckpointError: groups of a size that no target has, or a pre_quant_scale that only some readers of a tensor
            have.
    """
    quantized = checkpoint.quantized
    assert quantized is not None, "the caller imports quantized checkpoints only"
    kept = {
        name
        for group in linear_groups(checkpoint.spec)
        if _keeps_pre_quant_scale(group, quantized)
        for name in group.linears
    }
    rules: dict[tuple[object, ...], tuple[Scheme, list[str]]] = {}
    for name, linear in quantized.linears.items():
        pre_quant_scale, act_order = name in kept, linear.input_order() is not None
        layout, scheme = linear.layout, _scheme(linear.layout, pre_quant_scale, act_order)
        key = (layout.name, layout.group_size, pre_quant_scale, act_order)
        rules.setdefault(key, (scheme, []))[1].append(name)
    return Recipe(
        name=f"imported-{quantized.format.method}",
        description=f"As the checkpoint came: {'; '.join(dict.fromkeys(str(name) for name, *_ in rules))}.",
        rules=tuple(Rule(modules=tuple(names), scheme=scheme) for scheme, names in rules.values()),
        kv_cache="fp8" if quantized.cache_scales else None,
    )


def _keeps_pre_quant_scale(group: LinearGroup, quantized: Quantized) -> bool:
    """Whether a group's pre_quant_scale stays with its linears: no layer before them can take it up, or only another
    quantized linear, whose scales stay as they are."""
    pre_quant_scale_I, smooth_layer = _pre_quant_scale(group, quantized), group.smooth_layer
    if pre_quant_scale_I is None or smooth_layer is None:
        return pre_quant_scale_I is not None
    from_quantized = any(name.removesuffix(".weight") in quantized.linears for name in smooth_layer.tensors)
    return from_quantized or not torch.equal(smooth_layer.shared(pre_quant_scale_I), pre_quant_scale_I)


def _pre_quant_scale(group: LinearGroup, quantized: Quantized) -> Tensor | None:
    """The pre_quant_scale of a group's linears, [in]; None if there is none or it is all ones."""
    linears = {name: quantized.linears.get(name) for name in group.linears}
    found = {name: linear.pre_quant_scale() if linear else None for name, linear in linears.items()}
    first = next((scale for scale in found.values() if scale is not None), None)
    apart = [name for name, own in found.items() if first is not None and (own is None or not torch.equal(own, first))]
    if apart:
        raise CheckpointError(
            "Linears that read one tensor have different pre_quant_scale tensors.",
            where=", ".join(group.linears),
            expected="the same for all of them",
            found=f"another, or none, at {', '.join(apart)}",
            fix=ORIGINAL,
        )
    return first


def _scheme(layout: LinearLayout, pre_quant_scale: bool, act_order: bool) -> Scheme:
    if layout.group_size not in (None, *GROUP_SIZES):
        raise CheckpointError(
            "The checkpoint's groups are of a size that no target takes.",
            where=layout.name,
            expected=f"groups of {', '.join(map(str, GROUP_SIZES))} inputs",
            found=layout.group_size,
            fix=ORIGINAL,
        )
    granularity: Literal["tensor", "channel", "group"]
    granularity = "group" if layout.group_size else "tensor" if layout.per_tensor else "channel"
    weights = Imported(
        type=layout.qweight_type,
        granularity=granularity,
        group_size=layout.group_size,
        algorithm="imported",
        pre_quant_scale=pre_quant_scale,
        act_order=act_order,
    )
    if layout.inputs is None:
        return Scheme(weights=weights)
    kind, mode = layout.inputs.split()
    return Scheme(weights=weights, inputs=Inputs.model_validate({"type": kind, "mode": mode}))


def import_quantized(
    checkpoint: Checkpoint,
    out: Path,
    *,
    resume_folder: Path | None = None,
    on_progress: ProgressCallback = ignore_progress,
) -> Stats:
    """Write a quantized checkpoint's scales as an `artifact.Artifact`, one block at a time.

    Args:
        out: must not exist or be empty.
        resume_folder: as `CalibrationOptions.resume_folder`.
        on_progress: called after every block.

    Raises:
        UsageError: `out` holds something.
        CheckpointError: a scale is not a positive, finite number, or quantized values are not what the format allows.
    """
    quantized = checkpoint.quantized
    assert quantized is not None, "the caller imports quantized checkpoints only"
    recipe = imported_recipe(checkpoint)
    key = CalibrationKey(
        checkpoint=checkpoint_fingerprint(checkpoint), recipe=recipe, compute="float32", shard="1/1", samples=()
    )
    done, unfinished = is_done(key, out), open_resume_state(out, key, resume_folder)
    if done:
        unfinished.clear()
        return read_stats(out)
    plan = CalibrationPlan(checkpoint.spec, recipe)
    quantization = Quantization(plan, unfinished)
    finished = quantization.finished
    for index, block in enumerate(plan.blocks):
        if index >= finished:
            if plan.is_quantized(block):
                result, record = _import_block(block, checkpoint, quantized)
                message = "%(block)s: %(linears)s imported, %(overrides)s rewritten"
                counts = {
                    "linears": Count(len(result.linears), "quantized linear"),
                    "overrides": Count(len(result.overrides), "tensor"),
                }
                log_event(_LOG, logging.INFO, message, block=block.name, **counts)
                quantization.keep(block, result, record)
            quantization.finish_block(block)
        on_progress(index + 1, len(plan.blocks))
    return quantization.finish(out, quantized.format.warnings)


@dataclass
class _BlockImport:
    """One block while it is imported."""

    linears: dict[str, QuantizedLinear] = field(default_factory=dict)
    overrides: dict[str, Tensor] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    largest_value_scale: float = 1.0
    """How much larger cached values may become by a pre_quant_scale that moves into v_proj."""


def _import_block(block: Block, checkpoint: Checkpoint, quantized: Quantized) -> tuple[QuantizedBlock, BlockRecord]:
    state = _BlockImport()
    for group in block.groups:
        names = [name for name in group.linears if name in quantized.linears]
        decoded = {name: _scales_alone(quantized.linears[name].decode()) for name in names}
        linears = [_linear(decoded[name], quantized.linears[name].layout) for name in names]
        state.linears |= zip(names, _share_input_scale(names, linears, state), strict=True)
    for group in block.groups:
        pre_quant_scale_I = _pre_quant_scale(group, quantized)
        if pre_quant_scale_I is not None and _keeps_pre_quant_scale(group, quantized):
            state.linears |= {n: replace(state.linears[n], pre_quant_scale=pre_quant_scale_I) for n in group.linears}
        elif pre_quant_scale_I is not None:
            _apply_pre_quant_scale(group, pre_quant_scale_I, state, checkpoint)
    kv = _cache_scales(block, quantized, state.largest_value_scale)
    return QuantizedBlock(state.linears, state.overrides, kv), BlockRecord(warnings=tuple(state.warnings))


def _scales_alone(decoded: Decoded) -> Decoded:
    """A linear that could be decoded, its quantized values on device "meta": they are read from the checkpoint."""
    return replace(decoded, qweight=decoded.qweight.to("meta"))


def _linear(decoded: Decoded, layout: LinearLayout) -> QuantizedLinear:
    scale = decoded.scale.expand(decoded.qweight.shape[0]).contiguous() if decoded.scale.ndim == 0 else decoded.scale
    return QuantizedLinear(
        qweight=decoded.qweight,
        weight_type=layout.qweight_type,
        scale=scale,
        zero_point=decoded.zero_point,
        group_size=layout.group_size,
        input_type=_input_type(layout),
        input_scale=decoded.input_scale,
        input_order=decoded.input_order,
    )


def _input_type(layout: LinearLayout) -> InputType | None:
    if layout.inputs is None:
        return None
    return "fp8" if layout.inputs.startswith("fp8") else "int8"


def _share_input_scale(
    names: Sequence[str], linears: Sequence[QuantizedLinear], state: _BlockImport
) -> Sequence[QuantizedLinear]:
    """Linears that read one tensor round it once, by the largest of their scales."""
    scales = {float(linear.input_scale) for linear in linears if linear.input_scale is not None}
    if len(scales) < 2:
        return linears
    listed = ", ".join(f"{scale:g}" for scale in sorted(scales))
    state.warnings.append(f"{', '.join(names)} read one tensor with input scales of their own ({listed}): the largest.")
    return share_input_scale(names, linears)


def _apply_pre_quant_scale(
    group: LinearGroup, pre_quant_scale_I: Tensor, state: _BlockImport, checkpoint: Checkpoint
) -> None:
    """Move a group's pre_quant_scale into the layer that produces its input."""
    smooth_layer = group.smooth_layer
    assert smooth_layer is not None, "_keeps_pre_quant_scale says so"
    scale_O = smooth_layer.to_source_channels(pre_quant_scale_I)
    for name in smooth_layer.tensors:
        _multiply(name, scale_O, state, checkpoint)
    if smooth_layer.produces_values:
        state.largest_value_scale = max(1.0, float(scale_O.max()))


def _multiply(name: str, scale_O: Tensor, state: _BlockImport, checkpoint: Checkpoint) -> None:
    """Make the rows of an unquantized linear, or the channels of a bias or a norm, as many times larger."""
    tensor = state.overrides[name] if name in state.overrides else checkpoint.read(name).float()
    state.overrides[name] = tensor * (scale_O[:, None] if tensor.ndim == 2 else scale_O)


def _cache_scales(block: Block, quantized: Quantized, value_scale: float) -> KVScales | None:
    index = _decoder_layer(block)
    if index is None or not quantized.cache_scales:
        return None
    key, value = (float(stored.read()) for stored in quantized.cache_scales[index])
    if not all(0 < scale < float("inf") for scale in (key, value)):
        raise CheckpointError(
            "A scale of the key-value cache cannot be used.",
            where=block.name,
            expected="positive, finite numbers",
            found=f"{key:g} and {value:g}",
            fix="download or copy the checkpoint again",
        )
    return KVScales("fp8", key=key, value=value * value_scale)


def _decoder_layer(block: Block) -> int | None:
    prefix = "language_model.model.layers."
    return int(block.name.removeprefix(prefix)) if block.name.startswith(prefix) else None
