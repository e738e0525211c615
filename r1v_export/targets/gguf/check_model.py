"""Which models llama.cpp computes as they were trained; the others are refused by name, for it says nothing.

Facts about llama.cpp are of its sources (tools/mtmd: clip.cpp, mtmd-image.cpp, models/internvl.cpp) and were seen on
`LLAMA_CPP`; see docs/gguf.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from r1v_export.count import Count
from r1v_export.errors import UsageError
from r1v_export.model_spec import ModelSpec
from r1v_export.quantization.groups import LM_HEAD_LINEAR, linear_shapes
from r1v_export.quantization.recipe import Scheme
from r1v_export.targets.gguf.write.types import BLOCK

LLAMA_CPP = "llama.cpp (xllamacpp 2026.10.11549)"

_PROJECTOR_EPS = 1e-5
_RMS_WIDTH, _RMS_BLOCKS = 3200, 45
"""llama.cpp computes RMSNorm in the tower of InternViT-6B, which it knows by its channels and blocks, and LayerNorm in
every other."""


def computes_rms(channels: int, blocks: int) -> bool:
    """Whether llama.cpp computes RMSNorm in a tower of that shape; LayerNorm otherwise."""
    return (channels, blocks) == (_RMS_WIDTH, _RMS_BLOCKS)


def needs_widening(spec: ModelSpec) -> bool:
    """Whether the tower has RMSNorm where llama.cpp computes LayerNorm: `write.tower` stores it twice as wide."""
    vision = spec.vision
    return vision.norm == "rms_norm" and not computes_rms(vision.hidden_size, vision.num_layers)


def check_model(spec: ModelSpec, schemes: Mapping[str, Scheme]) -> None:
    """Refuse a model that llama.cpp would compute as another.

    Raises:
        UsageError: what it has and llama.cpp has not.
    """
    for what, where, expected, found in (*_vision(spec), *_projector(spec), *_tiling(spec), *_language(spec, schemes)):
        raise UsageError(
            f"llama.cpp does not compute this model: {what}.",
            where=where,
            expected=expected,
            found=found,
            fix="another target",
        )
    _check_rows(spec, schemes)


_Problem = tuple[str, str, object, object]
"""What llama.cpp does, the field, the value that it takes, the model's."""


def _vision(spec: ModelSpec) -> Iterator[_Problem]:
    vision = spec.vision
    if vision.norm == "layer_norm" and computes_rms(vision.hidden_size, vision.num_layers):
        shape = f"{Count(vision.hidden_size, 'channel')} in {Count(vision.num_layers, 'block')}"
        yield (
            f"it takes every tower of {shape} for one with RMSNorm",
            "vision_config.norm_type",
            "rms_norm",
            "layer_norm",
        )
    if vision.norm == "layer_norm" and vision.qk_norm:
        yield (
            "it normalizes queries and keys as the blocks, with LayerNorm",
            "vision_config.qk_normalization",
            False,
            True,
        )
    if needs_widening(spec):
        if computes_rms(2 * vision.hidden_size, vision.num_layers):
            yield (
                "its tower of twice as many channels would be InternViT-6B's",
                "vision_config",
                "another width",
                "1600",
            )
        if vision.hidden_size % BLOCK:
            what = f"quantized rows are in blocks of {BLOCK}"
            yield what, "vision_config.hidden_size", f"a multiple of {BLOCK}", vision.hidden_size


def _projector(spec: ModelSpec) -> Iterator[_Problem]:
    if spec.projector.ps_version != "v2":
        yield "its pixel shuffle is version v2", "ps_version", "v2", spec.projector.ps_version
    if spec.projector.norm_eps != _PROJECTOR_EPS:
        yield "its projector's epsilon is fixed", "projector", _PROJECTOR_EPS, spec.projector.norm_eps


def _tiling(spec: ModelSpec) -> Iterator[_Problem]:
    tiling = spec.tiling
    if not tiling.dynamic or tiling.max_tiles == 1:
        yield "it always cuts images larger than a tile", "dynamic_image_size, max_dynamic_patch", "several tiles", 1
    elif not tiling.use_thumbnail:
        yield "it always adds a thumbnail to several tiles", "use_thumbnail", True, False
    if tiling.min_tiles != 1:
        yield "it makes one tile of images up to a tile's size", "min_dynamic_patch", 1, tiling.min_tiles


def _language(spec: ModelSpec, schemes: Mapping[str, Scheme]) -> Iterator[_Problem]:
    scaling = spec.language.rope_scaling
    if scaling is not None and scaling.type == "yarn":
        yield "its YaRN scales attention by a formula of its own", "llm_config.rope_scaling", "none or linear", "yarn"
    if LM_HEAD_LINEAR in schemes and spec.language.tie_word_embeddings:
        yield "a tied head is the token embedding, which is not quantized", LM_HEAD_LINEAR, "16 bits", "quantized"


def _check_rows(spec: ModelSpec, schemes: Mapping[str, Scheme]) -> None:
    shapes = linear_shapes(spec)
    for linear in schemes:
        if shapes[linear][1] % BLOCK:
            raise UsageError(
                "GGUF's quantized types have blocks of 32 inputs.",
                where=linear,
                expected="in-features that are a multiple of 32",
                found=shapes[linear][1],
                fix="a rule with `scheme: null` for it",
            )


def warnings(spec: ModelSpec) -> tuple[str, ...]:
    """What people should know of the files, a sentence each."""
    found = [
        f"{LLAMA_CPP} cuts images into tiles by a rule of its own: its tiles are this package's only where an image "
        "has exactly the size of a grid of tiles; see docs/gguf.md."
    ]
    if needs_widening(spec):
        found.append(
            "llama.cpp has no RMSNorm for a tower of this shape: it is stored twice as wide, so that LayerNorm is "
            "RMSNorm, and only the scale of the projector's norm is approximate."
        )
    return tuple(found)
