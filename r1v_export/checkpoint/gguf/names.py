"""Which tensor of which GGUF file a canonical tensor is; the names are those of the package gguf (gguf-py).

A model is two files: the language model (`general.architecture` qwen2), and the vision tower with the projector (clip,
projector type internvl).
"""

from __future__ import annotations

from dataclasses import dataclass

import gguf

from r1v_export.checkpoint.names import LM_HEAD, expected_tensors
from r1v_export.model_spec import ModelSpec

MODEL_FILE, MMPROJ_FILE = "model.gguf", "mmproj.gguf"

POSITION = "vision_model.embeddings.position_embedding"
CLASS = "vision_model.embeddings.class_embedding"
PATCH = "vision_model.embeddings.patch_embedding.weight"

_SUFFIXES = (".weight", ".bias")
_WITHOUT_SUFFIX = (".ls1", ".ls2", ".position_embedding")
"""Canonical names that gguf-py's table has with `.weight` behind them."""

_PROJECTOR_LAYERS = 4
"""`mlp1.0` to `mlp1.3` are numbered as blocks are."""


@dataclass(frozen=True)
class Stored:
    """Where a canonical tensor is."""

    file: str
    names: tuple[str, ...]
    """Several are joined along their rows: query, key and value of the tower."""


def stored_tensors(spec: ModelSpec) -> dict[str, Stored]:
    """Canonical name -> file and names of each tensor of a model; a tied language-model head is not stored."""
    language = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN2, spec.language.num_layers)
    vision = gguf.get_tensor_name_map(gguf.MODEL_ARCH.MMPROJ, max(spec.vision.num_layers, _PROJECTOR_LAYERS))
    found: dict[str, Stored] = {}
    for name in expected_tensors(spec):
        if name.startswith("language_model."):
            if name != LM_HEAD or not spec.language.tie_word_embeddings:
                found[name] = Stored(MODEL_FILE, (_name(language, name.removeprefix("language_model.")),))
        else:
            found[name] = Stored(MMPROJ_FILE, tuple(_name(vision, part) for part in _vision_parts(name)))
    return found


def _vision_parts(name: str) -> tuple[str, ...]:
    """The names by which gguf-py knows a tensor of the tower or the projector."""
    if name.startswith("vision_model."):
        name = f"vision_tower.{name}"
    if name.endswith(_WITHOUT_SUFFIX):
        name += ".weight"
    if ".attn.qkv." not in name:
        return (name,)
    return tuple(name.replace(".attn.qkv.", f".self_attn.{part}_proj.") for part in "qkv")


def _name(table: gguf.TensorNameMap, name: str) -> str:
    found = table.get_name(name, _SUFFIXES)
    assert found is not None, f"gguf-py has no name for {name}"
    return found
