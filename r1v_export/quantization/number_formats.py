"""The number formats of quantized values: FP8 (E4M3FN), INT8, INT4 and UINT4, with their ranges and storage types."""

from __future__ import annotations

from typing import Literal

import torch

WeightType = Literal["fp8", "int8", "int4", "uint4"]
InputType = Literal["fp8", "int8"]

RANGES: dict[str, tuple[float, float]] = {
    "fp8": (-448.0, 448.0),
    "int8": (-128.0, 127.0),
    "int4": (-8.0, 7.0),
    "uint4": (0.0, 15.0),
}
"""Smallest and largest quantized value of each type; fp8 is E4M3FN, which has no infinity."""

QWEIGHT_DTYPES: dict[str, torch.dtype] = {
    "fp8": torch.float8_e4m3fn,
    "int8": torch.int8,
    "int4": torch.int8,
    "uint4": torch.int8,
}
