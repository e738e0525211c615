"""`rope_scaling` (transformers 5: `rope_parameters`) and `rope_theta` of a language model's configuration.

A scaling that is not the one a model was trained with gives other angles at every position, so each key is either
understood or refused.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from r1v_export.checkpoint.config_section import LARGEST_SIZE, UNSUPPORTED, Section
from r1v_export.model_spec import RopeScaling

_COMMON_KEYS = frozenset({"type", "rope_type", "rope_theta", "partial_rotary_factor"})
_KEYS = {
    "default": frozenset[str](),
    "linear": frozenset({"factor", "original_max_position_embeddings"}),
    "dynamic": frozenset({"factor", "original_max_position_embeddings"}),
    "yarn": frozenset(
        {
            "factor",
            "original_max_position_embeddings",
            "attention_factor",
            "beta_fast",
            "beta_slow",
            "mscale",
            "mscale_all_dim",
            "truncate",
        }
    ),
}
"""Keys of a rope entry by its type, besides the common ones."""
_YARN_DEFAULTS = {"beta_fast": 32.0, "beta_slow": 1.0, "truncate": True}


class Rope(NamedTuple):
    """Rotary positions as a configuration declares them."""

    theta: float
    scaling: RopeScaling | None
    positions: int
    """Longest sequence."""


def read_rope(llm: Section) -> Rope:
    """The rotary positions of a language model.

    Raises:
        CheckpointError: a type that is unknown, missing or contradicted, or a key that changes the angles in a way
            that has no code here.
    """
    _check_whole_head(llm)
    positions = llm.size("max_position_embeddings")
    entries = [entry for key in ("rope_parameters", "rope_scaling") if (entry := llm.section(key)) is not None]
    if len(entries) == 2 and entries[0].values != entries[1].values:
        raise llm.wrong("rope_scaling", "the same as rope_parameters", entries[1].values, "remove one of the two")
    if not entries or not entries[0].values:
        return Rope(llm.number("rope_theta"), None, positions)
    rope = entries[0]
    theta = (rope if rope.has("rope_theta") else llm).number("rope_theta")
    kind = _kind(rope)
    if kind == "default":
        return Rope(theta, None, positions)
    original = "original_max_position_embeddings"
    trained = next((each.size(original) for each in (llm, rope) if each.has(original)), positions)
    if kind == "dynamic":
        return Rope(theta, _dynamic(rope, positions, trained), positions)
    if kind == "linear":
        return Rope(theta, RopeScaling(type="linear", factor=_factor(rope)), positions)
    scaling = _yarn(rope, theta, positions, trained)
    extended = max(positions, int(trained * scaling.factor))
    if extended > LARGEST_SIZE:
        raise rope.wrong("factor", f"a context up to {LARGEST_SIZE}", scaling.factor)
    return Rope(theta, scaling, extended)


def _check_whole_head(llm: Section) -> None:
    """All dimensions of a head are rotated."""
    places = [llm, *(entry for key in ("rope_scaling", "rope_parameters") if (entry := llm.section(key)) is not None)]
    for place in places:
        if place.has("partial_rotary_factor") and place.number("partial_rotary_factor") != 1:
            raise place.wrong("partial_rotary_factor", "1", place.get("partial_rotary_factor"), UNSUPPORTED)


def _kind(rope: Section) -> str:
    named = {key: rope.get(key) for key in ("rope_type", "type") if rope.has(key)}
    if not named and not set(rope.values) - _COMMON_KEYS:
        return "default"
    if not named:
        raise rope.wrong("type", " or ".join(_KEYS), None, "name the scaling that the model was trained with")
    kinds = set(map(str, named.values()))
    if len(kinds) > 1:
        fix = "keep the one that the model was trained with; readers disagree about which of them counts"
        raise rope.wrong("rope_type", "the same as type", named, fix)
    kind = kinds.pop()
    if kind not in _KEYS:
        raise rope.wrong(next(iter(named)), " or ".join(_KEYS), kind, UNSUPPORTED)
    unknown = sorted(key for key in rope.values if rope.has(key) and key not in _COMMON_KEYS | _KEYS[kind])
    if unknown:
        raise rope.wrong(
            unknown[0], f"only keys of type {kind}: {', '.join(sorted(_KEYS[kind])) or 'none'}", unknown, UNSUPPORTED
        )
    return kind


def _factor(rope: Section) -> float:
    factor = rope.number("factor")
    if factor < 1:
        raise rope.wrong("factor", "at least 1", factor)
    return factor


def _dynamic(rope: Section, positions: int, trained: int) -> RopeScaling:
    """transformers scales from `max_position_embeddings` on and ignores the original length; others start there."""
    if trained != positions:
        raise rope.wrong(
            "original_max_position_embeddings",
            f"max_position_embeddings {positions}, or none",
            trained,
            f"remove it where the model was trained with transformers, which ignores it; or set "
            f"max_position_embeddings to {trained}, up to where the angles are those of training",
        )
    return RopeScaling(type="dynamic", factor=_factor(rope))


def _yarn(rope: Section, theta: float, positions: int, trained: int) -> RopeScaling:
    rope = Section(rope.values, rope.path, _YARN_DEFAULTS)
    # A null factor means the ratio of both lengths, as DeepSeek's configurations have it.
    factor = _factor(rope) if rope.has("factor") or positions <= trained else positions / trained
    fast, slow = rope.number("beta_fast"), rope.number("beta_slow")
    if fast < slow:
        raise rope.wrong("beta_fast", f"at least beta_slow {slow}", fast)
    if theta <= 1:
        raise rope.wrong("rope_theta", "more than 1 with YaRN", theta)
    return RopeScaling(
        type="yarn",
        factor=factor,
        original_max_position_embeddings=trained,
        attention_factor=_attention_factor(rope, factor),
        beta_fast=fast,
        beta_slow=slow,
        truncate=rope.flag("truncate"),
    )


def _attention_factor(rope: Section, factor: float) -> float:
    """YaRN, section 3.4: 0.1 ln(factor) + 1, or the ratio of two such where `mscale` and `mscale_all_dim` are given."""
    if rope.has("attention_factor"):
        return rope.number("attention_factor")
    if rope.get("mscale") and rope.get("mscale_all_dim"):
        return _magnitude(factor, rope.number("mscale")) / _magnitude(factor, rope.number("mscale_all_dim"))
    return _magnitude(factor, 1.0)


def _magnitude(factor: float, scale: float) -> float:
    return 0.1 * scale * math.log(factor) + 1.0
