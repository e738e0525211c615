"""Half precision, which GGUF's quantized types have their scales in."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from r1v_export.errors import UsageError
from r1v_export.quantization.quantized_linear import all_finite

LARGEST = float(np.finfo(np.float16).max)


def half(values: Tensor, where: str) -> Tensor:
    """Round values [...] to half precision; float32 [...].

    Raises:
        UsageError: a number is too large for half precision.
    """
    rounded = values.to(torch.float16).float()
    if not all_finite(rounded):
        raise too_large(where, float(values.abs().max()))
    return rounded


def too_large(where: str, found: float) -> UsageError:
    """The error for such a number."""
    return UsageError(
        "A number is too large for half precision.",
        where=where,
        expected="at most 65504",
        found=f"{found:g}",
        fix="--precision bf16 or fp32",
    )
