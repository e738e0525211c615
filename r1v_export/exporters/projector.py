"""The projector graph: vision_features -> image_embeds."""

from __future__ import annotations

from r1v_export.exporters.graph import GraphSource
from r1v_export.model_spec import ModelSpec
from r1v_export.reference.projector import Projector


def source(spec: ModelSpec) -> GraphSource:
    """Return the projector's module and the prefix of its weights."""
    return GraphSource(module=lambda: Projector(spec.projector), prefix="mlp1.")
