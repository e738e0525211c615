"""The keys of the two GGUF files, by gguf-py's own names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import gguf

from r1v_export.checkpoint.gguf.configuration import SYSTEM_MESSAGE, TEMPLATE, TOWER_CHANNELS, WRITTEN_BY
from r1v_export.model_spec import IMAGENET_MEAN, IMAGENET_STD, ModelSpec
from r1v_export.targets.gguf.check_model import needs_widening
from r1v_export.version import VERSION

_FILE_TYPES = {
    "F32": gguf.LlamaFileType.ALL_F32,
    "F16": gguf.LlamaFileType.MOSTLY_F16,
    "BF16": gguf.LlamaFileType.MOSTLY_BF16,
    "Q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
    "Q4_0": gguf.LlamaFileType.MOSTLY_Q4_0,
    "Q4_1": gguf.LlamaFileType.MOSTLY_Q4_1,
    "Q5_0": gguf.LlamaFileType.MOSTLY_Q5_0,
    "Q5_1": gguf.LlamaFileType.MOSTLY_Q5_1,
    "Q4_K": gguf.LlamaFileType.MOSTLY_Q4_K_M,
    "Q5_K": gguf.LlamaFileType.MOSTLY_Q5_K_M,
    "Q6_K": gguf.LlamaFileType.MOSTLY_Q6_K,
}
"""Type of most of a file's matrices -> what the file says of itself."""


def add_language(writer: gguf.GGUFWriter, spec: ModelSpec, kinds: Iterable[str]) -> None:
    """Everything about the language model but its tokenizer.

    Args:
        kinds: types of its matrices.
    """
    language = spec.language
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(spec.architecture)
    writer.add_context_length(language.max_position_embeddings)
    writer.add_embedding_length(language.hidden_size)
    writer.add_block_count(language.num_layers)
    writer.add_feed_forward_length(language.intermediate_size)
    writer.add_head_count(language.num_heads)
    writer.add_head_count_kv(language.num_kv_heads)
    writer.add_key_length(language.head_dim)
    writer.add_value_length(language.head_dim)
    writer.add_layer_norm_rms_eps(language.rms_norm_eps)
    writer.add_rope_freq_base(language.rope_theta)
    if language.rope_scaling is not None and language.rope_scaling.type == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(language.rope_scaling.factor)
    writer.add_string(TEMPLATE, spec.template)
    if spec.system_message is not None:
        writer.add_string(SYSTEM_MESSAGE, spec.system_message)
    _add_origin(writer, kinds)


def add_vision(writer: gguf.GGUFWriter, spec: ModelSpec, kinds: Iterable[str]) -> None:
    """Everything about the tower, the projector and how an image becomes tiles.

    Args:
        kinds: types of their matrices.
    """
    vision, times = spec.vision, 2 if needs_widening(spec) else 1
    writer.add_type(gguf.GGUFType.MMPROJ)
    writer.add_name(spec.architecture)
    writer.add_clip_has_vision_encoder(True)
    writer.add_clip_projector_type(gguf.VisionProjectorType.INTERNVL)
    writer.add_vision_image_size(spec.tiling.tile_size)
    writer.add_vision_patch_size(vision.patch_size)
    writer.add_vision_embedding_length(times * vision.hidden_size)
    writer.add_vision_feed_forward_length(vision.intermediate_size)
    writer.add_vision_block_count(vision.num_layers)
    writer.add_vision_head_count(times * vision.num_heads)
    writer.add_vision_attention_layernorm_eps(vision.norm_eps)
    writer.add_vision_use_gelu(True)
    writer.add_vision_projection_dim(spec.language.hidden_size)
    writer.add_vision_projector_scale_factor(spec.projector.shuffle)
    writer.add_vision_image_mean(IMAGENET_MEAN)
    writer.add_vision_image_std(IMAGENET_STD)
    writer.add_vision_preproc_min_tiles(spec.tiling.min_tiles)
    writer.add_vision_preproc_max_tiles(spec.tiling.max_tiles)
    writer.add_uint32(TOWER_CHANNELS, vision.hidden_size)
    _add_origin(writer, kinds)


def _add_origin(writer: gguf.GGUFWriter, kinds: Iterable[str]) -> None:
    (main, _), *_ = Counter(kinds).most_common(1)
    writer.add_file_type(_FILE_TYPES[main])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_string(WRITTEN_BY, VERSION)
