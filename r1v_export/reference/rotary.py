"""Rotary frequencies of the language model, plain and scaled, equal to those of transformers' `modeling_rope_utils`."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from r1v_export.model_spec import LanguageSpec, RopeScaling


def inverse_frequencies(spec: LanguageSpec) -> Tensor:
    """Radians per position of each pair of dimensions, [D/2], float32.

    Dynamic scaling changes nothing up to `max_position_embeddings`: its base is
    theta * (factor * length / max - (factor - 1)) ^ (D / (D - 2)), and a shorter sequence counts as one of length max.
    """
    exponents = torch.arange(0, spec.head_dim, 2, dtype=torch.int64).float() / spec.head_dim
    plain = 1.0 / (spec.rope_theta**exponents)
    scaling = spec.rope_scaling
    if scaling is None or scaling.type == "dynamic":
        return plain
    if scaling.type == "linear":
        return plain / scaling.factor
    interpolated = 1.0 / (scaling.factor * spec.rope_theta**exponents)
    kept = 1 - _yarn_ramp(spec, scaling)
    return interpolated * (1 - kept) + plain * kept


def _yarn_ramp(spec: LanguageSpec, scaling: RopeScaling) -> Tensor:
    """0 for dimensions that keep their frequency, 1 for those that are interpolated, a line between, [D/2].

    Source: YaRN, section 3.2 (arXiv 2309.00071).
    """

    def dimension(rotations: float) -> float:
        """The dimension that turns so often over the original context."""
        assert scaling.original_max_position_embeddings is not None
        length = scaling.original_max_position_embeddings / (rotations * 2 * math.pi)
        return spec.head_dim * math.log(length) / (2 * math.log(spec.rope_theta))

    low, high = dimension(scaling.beta_fast), dimension(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, spec.head_dim - 1)
    if low == high:
        high += 0.001
    return ((torch.arange(spec.head_dim // 2, dtype=torch.float32) - low) / (high - low)).clamp(0, 1)
