"""The decoder graph: inputs_embeds and the cache -> logits and the updated cache."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from r1v_export.contract import decoder_layer
from r1v_export.exporters.graph import GraphSource
from r1v_export.model_spec import LanguageSpec, ModelSpec
from r1v_export.reference.language import CacheStep, LanguageModel, LayerCache, Rotary, rotary_tables

PREFIX = "language_model."
ROTARY_COS, ROTARY_SIN = "rotary_cos", "rotary_sin"


class DecoderGraph(LanguageModel):
    """The language model with the contract's flat inputs and outputs, and its rotary tables as constants."""

    def __init__(self, spec: LanguageSpec) -> None:
        super().__init__(spec)
        tables = (spec.max_position_embeddings, spec.head_dim // 2)
        self.register_buffer(ROTARY_COS, torch.empty(tables))
        self.register_buffer(ROTARY_SIN, torch.empty(tables))

    def forward(  # type: ignore[override]
        self,
        inputs_embeds: Tensor,
        position_ids: Tensor,
        cache_write_index: Tensor,
        cache_length: Tensor,
        logits_index: Tensor,
        *past: Tensor,
    ) -> tuple[Tensor, ...]:
        rotary = Rotary(self.get_buffer(ROTARY_COS), self.get_buffer(ROTARY_SIN))
        step = CacheStep(position_ids, cache_write_index, cache_length)
        cache = [LayerCache(*pair) for pair in zip(past[::2], past[1::2], strict=True)]
        logits, present = super().forward(inputs_embeds, rotary, step, cache, logits_index)
        assert present is not None
        return logits, *(tensor for layer in present for tensor in layer)


def source(spec: ModelSpec) -> GraphSource:
    """Return the decoder's module, the prefix of its weights, and the rotary tables computed from the spec."""
    language = spec.language

    def tables() -> Rotary:
        return rotary_tables(language, language.max_position_embeddings)

    def module() -> nn.Module:
        return DecoderGraph(language)

    derived = {PREFIX + ROTARY_COS: lambda _: tables().cos, PREFIX + ROTARY_SIN: lambda _: tables().sin}
    if language.tie_word_embeddings:
        derived[PREFIX + "lm_head.weight"] = lambda read: read(PREFIX + "model.embed_tokens.weight")
    layers = {f"{PREFIX}model.layers.{i}": decoder_layer(i) for i in range(language.num_layers)}
    return GraphSource(module=module, prefix=PREFIX, derived=derived, value_names=layers)
