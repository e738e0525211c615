"""Which tensors a model has, under which names, in each published layout.

Canonical names are those of the `internvl_chat` layout, which every Skywork-R1V and OpenGVLab InternVL checkpoint
uses and which `reference.Model` has. `{i}` stands for a layer's number.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator

from r1v_export.model_spec import LanguageSpec, ModelSpec, ProjectorSpec, VisionSpec

Shape = tuple[int, ...]

EMBED_TOKENS = "language_model.model.embed_tokens.weight"
LM_HEAD = "language_model.lm_head.weight"

NATIVE_NAMES: dict[str, tuple[str, ...]] = {
    "vision_model.embeddings.class_embedding": ("model.vision_tower.embeddings.cls_token",),
    "vision_model.embeddings.position_embedding": ("model.vision_tower.embeddings.position_embeddings",),
    "vision_model.embeddings.patch_embedding.*": ("model.vision_tower.embeddings.patch_embeddings.projection.*",),
    "vision_model.encoder.layers.{i}.norm1.*": ("model.vision_tower.encoder.layer.{i}.layernorm_before.*",),
    "vision_model.encoder.layers.{i}.norm2.*": ("model.vision_tower.encoder.layer.{i}.layernorm_after.*",),
    "vision_model.encoder.layers.{i}.attn.qkv.*": (
        "model.vision_tower.encoder.layer.{i}.attention.q_proj.*",
        "model.vision_tower.encoder.layer.{i}.attention.k_proj.*",
        "model.vision_tower.encoder.layer.{i}.attention.v_proj.*",
    ),
    "vision_model.encoder.layers.{i}.attn.q_norm.*": ("model.vision_tower.encoder.layer.{i}.attention.q_norm.*",),
    "vision_model.encoder.layers.{i}.attn.k_norm.*": ("model.vision_tower.encoder.layer.{i}.attention.k_norm.*",),
    "vision_model.encoder.layers.{i}.attn.proj.*": (
        "model.vision_tower.encoder.layer.{i}.attention.projection_layer.*",
    ),
    "vision_model.encoder.layers.{i}.mlp.*": ("model.vision_tower.encoder.layer.{i}.mlp.*",),
    "vision_model.encoder.layers.{i}.ls1": ("model.vision_tower.encoder.layer.{i}.lambda_1",),
    "vision_model.encoder.layers.{i}.ls2": ("model.vision_tower.encoder.layer.{i}.lambda_2",),
    "mlp1.0.*": ("model.multi_modal_projector.layer_norm.*",),
    "mlp1.1.*": ("model.multi_modal_projector.linear_1.*",),
    "mlp1.3.*": ("model.multi_modal_projector.linear_2.*",),
    "language_model.model.*": ("model.language_model.*",),
    "language_model.lm_head.*": ("lm_head.*",),
}
"""Canonical name -> stored names of transformers' native `internvl` layout, joined along the rows. `*` is the rest."""

OLDER_NATIVE_PREFIXES: dict[str, str] = {
    "model.vision_tower.": "vision_tower.",
    "model.multi_modal_projector.": "multi_modal_projector.",
    "model.language_model.": "language_model.model.",
    "lm_head.": "language_model.lm_head.",
}
"""Prefixes of today's native names -> those that the first `-hf` checkpoints were saved with."""

_UNUSED = re.compile(
    r".*\.rotary_emb\.inv_freq"  # a buffer that old transformers versions saved
    r"|(model\.)?vision_tower\.embeddings\.mask_token"  # for masked training only
)
_VISION_BLOCK = re.compile(r"(vision_model\.encoder\.layers|(model\.)?vision_tower\.encoder\.layer)\.(?P<i>\d+)\.")


def expected_tensors(spec: ModelSpec) -> dict[str, Shape]:
    """Canonical name and shape of every tensor of a model; the same keys as `reference.Model(spec).state_dict()`."""
    return dict(
        [
            *_vision_tensors(spec.vision),
            *_projector_tensors(spec.projector),
            *_language_tensors(spec.language),
        ]
    )


def _vision_tensors(vision: VisionSpec) -> Iterator[tuple[str, Shape]]:
    hidden, intermediate, patch = vision.hidden_size, vision.intermediate_size, vision.patch_size
    yield "vision_model.embeddings.class_embedding", (1, 1, hidden)
    yield "vision_model.embeddings.position_embedding", (1, vision.num_positions, hidden)
    yield from _linear("vision_model.embeddings.patch_embedding", (hidden, 3, patch, patch))
    for i in range(vision.num_layers):
        layer = f"vision_model.encoder.layers.{i}"
        yield f"{layer}.ls1", (hidden,)
        yield f"{layer}.ls2", (hidden,)
        for norm in ("norm1", "norm2"):
            yield from _linear(f"{layer}.{norm}", (hidden,), bias=vision.norm == "layer_norm")
        yield from _linear(f"{layer}.attn.qkv", (3 * hidden, hidden), bias=vision.qkv_bias)
        yield from _linear(f"{layer}.attn.proj", (hidden, hidden))
        if vision.qk_norm:
            yield f"{layer}.attn.q_norm.weight", (hidden,)
            yield f"{layer}.attn.k_norm.weight", (hidden,)
        yield from _linear(f"{layer}.mlp.fc1", (intermediate, hidden))
        yield from _linear(f"{layer}.mlp.fc2", (hidden, intermediate))


def _projector_tensors(projector: ProjectorSpec) -> Iterator[tuple[str, Shape]]:
    yield from _linear("mlp1.0", (projector.in_features,))
    yield from _linear("mlp1.1", (projector.hidden_size, projector.in_features))
    yield from _linear("mlp1.3", (projector.hidden_size, projector.hidden_size))


def _language_tensors(language: LanguageSpec) -> Iterator[tuple[str, Shape]]:
    hidden, intermediate = language.hidden_size, language.intermediate_size
    query, key_value = language.num_heads * language.head_dim, language.num_kv_heads * language.head_dim
    yield EMBED_TOKENS, (language.vocab_size, hidden)
    for i in range(language.num_layers):
        layer = f"language_model.model.layers.{i}"
        yield f"{layer}.input_layernorm.weight", (hidden,)
        yield from _linear(f"{layer}.self_attn.q_proj", (query, hidden))
        yield from _linear(f"{layer}.self_attn.k_proj", (key_value, hidden))
        yield from _linear(f"{layer}.self_attn.v_proj", (key_value, hidden))
        yield f"{layer}.self_attn.o_proj.weight", (hidden, query)
        yield f"{layer}.post_attention_layernorm.weight", (hidden,)
        yield f"{layer}.mlp.gate_proj.weight", (intermediate, hidden)
        yield f"{layer}.mlp.up_proj.weight", (intermediate, hidden)
        yield f"{layer}.mlp.down_proj.weight", (hidden, intermediate)
    yield "language_model.model.norm.weight", (hidden,)
    yield LM_HEAD, (language.vocab_size, hidden)


def _linear(name: str, weight: Shape, bias: bool = True) -> Iterator[tuple[str, Shape]]:
    """A weight with its bias over the first axis: linears, convolutions and norms."""
    yield f"{name}.weight", weight
    if bias:
        yield f"{name}.bias", weight[:1]


def stored_names(canonical: str, spec: ModelSpec, older_prefixes: bool = False) -> tuple[str, ...]:
    """Under which names a canonical tensor is stored; several are to be joined along their rows (q, k, v).

    A tied language-model head is stored as the token embedding. `older_prefixes` is for the native layout, see
    `has_older_prefixes`.
    """
    if canonical == LM_HEAD and spec.language.tie_word_embeddings:
        canonical = EMBED_TOKENS
    if spec.layout == "internvl_chat":
        return (canonical,)
    return tuple(_older(name) if older_prefixes else name for name in _native_names(canonical))


def names_under_other_prefixes(stored_name: str) -> tuple[str, ...]:
    """A stored name itself, and what it is under today's and under the older prefixes of the native layout.

    Configurations name modules as the class that wrote them has them, which need not be how it stores them.
    """
    renamed = [stored_name]
    for today, older in OLDER_NATIVE_PREFIXES.items():
        for prefix, other in ((today, older), (older, today)):
            if stored_name.startswith(prefix):
                renamed.append(other + stored_name.removeprefix(prefix))
    return tuple(dict.fromkeys(renamed))


def has_older_prefixes(stored: Collection[str]) -> bool:
    """Whether a native checkpoint's names are those of the first `-hf` checkpoints."""
    return any(name.startswith("vision_tower.") for name in stored)


def stores_lm_head(stored: Collection[str]) -> bool:
    """Whether the files hold a language-model head of its own, in any layout."""
    return LM_HEAD in stored or "lm_head.weight" in stored


def is_unused(stored_name: str, unused_vision_layers: range) -> bool:
    """Whether a stored tensor that no part of the model takes is known and harmless: a buffer, or a ViT block that
    the configuration declares but `select_layer` cuts off."""
    block = _VISION_BLOCK.match(stored_name)
    return bool(_UNUSED.fullmatch(stored_name)) or (block is not None and int(block["i"]) in unused_vision_layers)


def _native_names(canonical: str) -> tuple[str, ...]:
    for pattern, targets in _NATIVE_PATTERNS.items():
        if match := pattern.fullmatch(canonical):
            found = match.groupdict()
            return tuple(t.replace("{i}", found.get("i", "")).replace("*", found.get("rest", "")) for t in targets)
    raise KeyError(canonical)


def _older(name: str) -> str:
    for prefix, older in OLDER_NATIVE_PREFIXES.items():
        if name.startswith(prefix):
            return older + name.removeprefix(prefix)
    raise KeyError(name)


def _compile(pattern: str) -> re.Pattern[str]:
    return re.compile(re.escape(pattern).replace(r"\{i\}", r"(?P<i>\d+)").replace(r"\*", r"(?P<rest>.+)"))


_NATIVE_PATTERNS = {_compile(pattern): targets for pattern, targets in NATIVE_NAMES.items()}
