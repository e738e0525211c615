"""What one quantized block adds to the files of a calibration."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from r1v_export.model_spec import ModelSpec
from r1v_export.quantization.artifact.qweight_layout import CALIBRATION, Values
from r1v_export.quantization.artifact.qweight_places import QweightPlace, choose_place
from r1v_export.quantization.kv_scales import key_name, value_name
from r1v_export.quantization.quantized_block import QuantizedBlock

SMOOTHING_SCALE = ".smoothing_scale"
"""Suffix of what AWQ or SmoothQuant moved into the weights of a group, behind the group's name."""


def qweight_tensors(block: QuantizedBlock, spec: ModelSpec, places: Sequence[QweightPlace] = ()) -> dict[str, Tensor]:
    """What goes into a block's file of quantized values: those on device "meta", and whatever AWQ's and SmoothQuant's
    scales rewrote, follow from the checkpoint.

    Args:
        places: one of them will take the file, see `choose_place`: its layout is taken.
    """
    stored = {name: linear for name, linear in block.linears.items() if not linear.qweight.is_meta}
    overrides = {} if block.smoothing else block.overrides
    values = {name: Values(linear.shape, linear.weight_type) for name, linear in stored.items()}
    place = None if overrides else choose_place(places, values)
    layout = place.layout if place else CALIBRATION
    tensors = dict(overrides)
    for name, linear in stored.items():
        tensors |= layout.tensors(name, linear, spec)
    return {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}


def scale_tensors(name: str, block: QuantizedBlock) -> dict[str, Tensor]:
    """What a block, by its name, adds to the file of scales."""
    tensors: dict[str, Tensor | None] = {}
    for linear_name, linear in block.linears.items():
        tensors[f"{linear_name}.weight_scale"] = linear.scale
        tensors[f"{linear_name}.weight_zero_point"] = linear.zero_point
        tensors[f"{linear_name}.input_scale"] = linear.input_scale
        tensors[f"{linear_name}.pre_quant_scale"] = linear.pre_quant_scale
        tensors[f"{linear_name}.input_order"] = linear.input_order
    for group, scale_I in block.smoothing.items():
        tensors[f"{group}{SMOOTHING_SCALE}"] = scale_I
    if block.kv is not None:
        tensors[f"{key_name(name)}_scale"] = torch.tensor(block.kv.key)
        tensors[f"{value_name(name)}_scale"] = torch.tensor(block.kv.value)
    return {key: tensor.cpu().contiguous() for key, tensor in tensors.items() if tensor is not None}
