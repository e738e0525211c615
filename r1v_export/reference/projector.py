"""The projector `mlp1`: vision features become embeddings of the language model."""

from __future__ import annotations

from torch import nn

from r1v_export.model_spec import ProjectorSpec


class Projector(nn.Sequential):
    """vision_features [T, N, in_features] -> image_embeds [T, N, hidden]. Index 2 is the exact (erf) GELU."""

    def __init__(self, spec: ProjectorSpec) -> None:
        super().__init__(
            nn.LayerNorm(spec.in_features, eps=spec.norm_eps),
            nn.Linear(spec.in_features, spec.hidden_size),
            nn.GELU(),
            nn.Linear(spec.hidden_size, spec.hidden_size),
        )
