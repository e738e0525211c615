"""Everything of a synthetic checkpoint but its weights: configuration, tokenizer, generation settings."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from r1v_export.checkpoint.config_section import Section
from r1v_export.checkpoint.hub_files import image_processor_config, readable_config, write_json
from r1v_export.checkpoint.presets import Preset
from r1v_export.count import Count
from r1v_export.errors import UsageError
from r1v_export.model_spec import IMAGENET_MEAN, IMAGENET_STD, ModelSpec
from r1v_export.processing.byte_level import BYTE_OF

_BYTES = 256
_CHAT_VISION_KEYS = ("qkv_bias", "qk_normalization")  # called otherwise in the native layout
_PROCESSOR_TOKENS = {
    "start_image_token": "<img>",
    "end_image_token": "</img>",
    "context_image_token": "<IMG_CONTEXT>",
    "video_token": "<video>",
}
"""Attributes that transformers' InternVLProcessor asks its tokenizer for."""
_QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def write_auxiliary_files(folder: Path, config: dict[str, Any], preset: Preset) -> None:
    """config.json and its company, in the `internvl_chat` layout.

    Args:
        folder: where to write.
        config: config.json.
        preset: names the added tokens; they move down where the vocabulary is too small for their official ids.
    """
    config = readable_config(config)
    llm = Section(config["llm_config"], "config.json: llm_config")
    tokens = _fit_tokens(preset.tokens, llm.size("vocab_size"))
    files = {
        "config.json": config,
        "generation_config.json": {
            "eos_token_id": tokens[preset.end_token],
            "do_sample": True,
            "temperature": 0.6,
            "top_p": 0.95,
            "repetition_penalty": 1.05,
        },
        "tokenizer.json": byte_tokenizer(tokens),
        "tokenizer_config.json": {
            "tokenizer_class": "Qwen2Tokenizer",
            "eos_token": preset.end_token,
            "added_tokens_decoder": {str(token_id): _added_token(token) for token, token_id in tokens.items()},
            "chat_template": _chat_template(config["model_type"], preset),
        },
        "added_tokens.json": tokens,
        "preprocessor_config.json": image_processor_config(config["force_image_size"]),
    }
    _write_files(folder, files)


def write_native_files(folder: Path, config: Mapping[str, Any], spec: ModelSpec) -> None:
    """The files that transformers' `internvl` layout has in their place or in addition.

    Args:
        folder: holds what `write_auxiliary_files` has written.
        config: the configuration in the `internvl_chat` layout.
        spec: what it describes.
    """
    tokenizer_config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    files = {
        "config.json": _native_config(config, spec),
        "preprocessor_config.json": _image_processor_config(spec),
        "tokenizer_config.json": tokenizer_config | {"extra_special_tokens": _PROCESSOR_TOKENS},
    }
    _write_files(folder, files)


def _write_files(folder: Path, files: Mapping[str, Any]) -> None:
    for name, content in files.items():
        write_json(folder / name, content)


def _chat_template(model_type: str, preset: Preset) -> str:
    """The family version's prompt for runtimes that render it themselves; this package has templates of its own."""
    reasoning = "<think>\\n" if model_type == "skywork_chat" else ""
    if "<｜User｜>" in preset.tokens:
        turn = "{{ ('<｜User｜>\\n' if message['role'] == 'user' else '<｜Assistant｜>') + message['content'] }}"
        start = "<｜Assistant｜>"
    else:
        turn = "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
        start = "<|im_start|>assistant\\n"
    opening = "{% if add_generation_prompt %}{{ '" + start + reasoning + "' }}{% endif %}"
    return "{% for message in messages %}" + turn + "{% endfor %}" + opening


def _fit_tokens(tokens: Mapping[str, int], vocab_size: int) -> dict[str, int]:
    if max(tokens.values()) < vocab_size:
        return dict(tokens)
    first = vocab_size - len(tokens)
    if first < _BYTES:
        raise UsageError(
            "The vocabulary is too small.",
            where="llm_config.vocab_size",
            expected=f"at least {_BYTES + len(tokens)}: every byte and {Count(len(tokens), 'added token')}",
            found=vocab_size,
            fix="raise it",
        )
    return {token: first + offset for offset, token in enumerate(tokens)}


def _added_token(token: str) -> dict[str, Any]:
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    return {"content": token, **flags, "special": token not in ("<think>", "</think>")}


def byte_tokenizer(tokens: Mapping[str, int]) -> dict[str, Any]:
    """tokenizer.json of a byte-level BPE without merges: ids 0 to 255 are the bytes.

    The added tokens stand in the model's vocabulary too: that alone lets them have ids far beyond the others.
    """
    vocab = dict(BYTE_OF)
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": token_id, **_added_token(token)} for token, token_id in sorted(tokens.items(), key=lambda t: t[1])
        ],
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": _QWEN2_SPLIT}, "behavior": "Isolated", "invert": False},
                {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False},
            ],
        },
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False},
        "model": {"type": "BPE", "vocab": vocab | dict(tokens), "merges": []},
    }


def _native_config(config: Mapping[str, Any], spec: ModelSpec) -> dict[str, Any]:
    """The same model's config.json in transformers' `internvl` layout."""
    vision = {key: value for key, value in config["vision_config"].items() if key not in _CHAT_VISION_KEYS}
    return {
        "architectures": ["InternVLForConditionalGeneration"],
        "model_type": "internvl",
        "image_token_id": spec.image_token_id,
        "image_seq_length": spec.tokens_per_tile,
        "downsample_ratio": 1 / spec.projector.shuffle,
        "projector_hidden_act": "gelu",
        "vision_feature_layer": config["select_layer"],
        "vision_feature_select_strategy": "default",
        "tie_word_embeddings": spec.language.tie_word_embeddings,
        "torch_dtype": spec.dtype,
        "text_config": dict(config["llm_config"]),
        "vision_config": vision
        | {
            "model_type": "internvl_vision",
            "architectures": ["InternVLVisionModel"],
            "attention_bias": spec.vision.qkv_bias,
            "use_qk_norm": spec.vision.qk_norm,
            "norm_type": spec.vision.norm,
            "image_size": [spec.vision.image_size] * 2,
            "patch_size": [spec.vision.patch_size] * 2,
        },
    }


def _image_processor_config(spec: ModelSpec) -> dict[str, Any]:
    return {
        "image_processor_type": "GotOcr2ImageProcessor",
        "processor_class": "InternVLProcessor",
        "size": {"height": spec.tiling.tile_size, "width": spec.tiling.tile_size},
        "crop_to_patches": True,
        "min_patches": spec.tiling.min_tiles,
        "max_patches": spec.tiling.max_tiles,
        "image_mean": list(IMAGENET_MEAN),
        "image_std": list(IMAGENET_STD),
    }
