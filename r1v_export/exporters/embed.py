"""The embed graph: input_ids, image_embeds -> inputs_embeds."""

from __future__ import annotations

from torch import nn

from r1v_export.exporters.graph import GraphSource
from r1v_export.model_spec import ModelSpec
from r1v_export.reference.embed import Embed


def source(spec: ModelSpec) -> GraphSource:
    """Return the embed graph's module and the prefix of its weights."""
    language = spec.language
    return GraphSource(
        module=lambda: Embed(nn.Embedding(language.vocab_size, language.hidden_size), spec.image_token_id),
        prefix="language_model.model.",
    )
