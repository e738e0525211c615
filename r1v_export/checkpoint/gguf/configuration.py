"""The files of an `internvl_chat` checkpoint that two GGUF files describe: configuration, tokenizer, stop tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf

from r1v_export.checkpoint.gguf.file import GgufFile
from r1v_export.checkpoint.hub_files import image_processor_config, readable_config, write_json
from r1v_export.processing.tokenizer_files import library_errors, qwen2_definition

WRITTEN_BY = "r1v_export.version"
"""In both files, where this package wrote them."""
TOWER_CHANNELS = "r1v_export.tower_channels"
"""Channels of the tower as it was trained; the file's are twice as many where the tower is widened."""
TEMPLATE, SYSTEM_MESSAGE = "r1v_export.template", "r1v_export.system_message"
"""The prompt template, and the checkpoint's own system message where it has one."""

RMS_TOWER = (3200, 45)
"""Channels and blocks by which llama.cpp knows InternViT-6B, the one tower in which it computes RMSNorm."""

_SPLITS = ("qwen2", "deepseek-r1-qwen")
"""llama.cpp's names of Qwen2's split pattern."""
_STOP_KEYS = ("eos", "eot", "eom")
_DEFAULT_TILES = (1, 12)
"""llama.cpp's, where the file does not say."""


def write_configuration(model: GgufFile, mmproj: GgufFile, folder: Path) -> None:
    """Write config.json and its company into a folder.

    Raises:
        CheckpointError: the files are of other architectures, or lack a key.
    """
    _check_architecture(model, "general.architecture", gguf.MODEL_ARCH_NAMES[gguf.MODEL_ARCH.QWEN2])
    _check_architecture(mmproj, gguf.Keys.Clip.PROJECTOR_TYPE, gguf.VisionProjectorType.INTERNVL)
    config = readable_config(_config(model, mmproj))
    write_json(folder / "config.json", config)
    write_json(folder / "preprocessor_config.json", image_processor_config(config["force_image_size"]))
    write_json(folder / "tokenizer.json", _tokenizer(model))
    tokenizer_config: dict[str, Any] = {"tokenizer_class": "Qwen2Tokenizer"}
    template = model.value(gguf.Keys.Tokenizer.CHAT_TEMPLATE)
    if isinstance(template, str):
        tokenizer_config["chat_template"] = template
    write_json(folder / "tokenizer_config.json", tokenizer_config)
    ids = [model.value(f"tokenizer.ggml.{key}_token_id") for key in _STOP_KEYS]
    write_json(folder / "generation_config.json", {"eos_token_id": [id_ for id_ in ids if id_ is not None]})


def is_widened(mmproj: GgufFile) -> bool:
    """Whether the tower is stored twice as wide as it was trained."""
    return bool(mmproj.value(TOWER_CHANNELS, 0)) and mmproj.value(TOWER_CHANNELS) != mmproj.value(
        gguf.Keys.ClipVision.EMBEDDING_LENGTH
    )


def _check_architecture(file: GgufFile, key: str, expected: str) -> None:
    if file.value(key) != expected:
        fix = "use a Skywork-R1V or an InternVL with a Qwen2.5 language model, and its mmproj file next to it"
        raise file.unusable(f"{key} {expected}", file.value(key), fix)


def _config(model: GgufFile, mmproj: GgufFile) -> dict[str, Any]:
    vision, clip = _vision(mmproj), gguf.Keys.ClipVision
    template = model.value(TEMPLATE)
    chat = str(model.value(gguf.Keys.Tokenizer.CHAT_TEMPLATE, ""))
    skywork = template != "internvl2_5" if isinstance(template, str) else "<think>" in chat
    kind = ("SkyworkR1VChatModel", "skywork_chat") if skywork else ("InternVLChatModel", "internvl_chat")
    language = _language(model)
    return {
        "architectures": [kind[0]],
        "model_type": kind[1],
        "downsample_ratio": 1 / mmproj.required(clip.Projector.SCALE_FACTOR, int),
        "ps_version": "v2",
        "select_layer": -1,
        "force_image_size": vision["image_size"],
        "dynamic_image_size": True,
        "use_thumbnail": True,
        "min_dynamic_patch": mmproj.value(clip.PREPROC_MIN_TILES, _DEFAULT_TILES[0]),
        "max_dynamic_patch": mmproj.value(clip.PREPROC_MAX_TILES, _DEFAULT_TILES[1]),
        "template": template,
        "system_message": model.value(SYSTEM_MESSAGE),
        "tie_word_embeddings": language["tie_word_embeddings"],
        "vision_config": vision,
        "llm_config": language,
    }


def _vision(mmproj: GgufFile) -> dict[str, Any]:
    clip = gguf.Keys.ClipVision
    width, heads = mmproj.required(clip.EMBEDDING_LENGTH, int), mmproj.required(clip.Attention.HEAD_COUNT, int)
    blocks = mmproj.required(clip.BLOCK_COUNT, int)
    rms = (width, blocks) == RMS_TOWER
    if is_widened(mmproj):
        rms, width, heads = True, width // 2, heads // 2
    return {
        "model_type": "intern_vit_6b",
        "architectures": ["InternVisionModel"],
        "num_channels": 3,
        "hidden_size": width,
        "num_attention_heads": heads,
        "num_hidden_layers": blocks,
        "intermediate_size": mmproj.required(clip.FEED_FORWARD_LENGTH, int),
        "patch_size": mmproj.required(clip.PATCH_SIZE, int),
        "image_size": mmproj.required(clip.IMAGE_SIZE, int),
        "norm_type": "rms_norm" if rms else "layer_norm",
        "qk_normalization": "v.blk.0.attn_q_norm.weight" in mmproj.tensors,
        "qkv_bias": "v.blk.0.attn_q.bias" in mmproj.tensors,
        "hidden_act": "gelu",
        "layer_norm_eps": mmproj.required(clip.Attention.LAYERNORM_EPS, float),
    }


def _language(model: GgufFile) -> dict[str, Any]:
    name = gguf.MODEL_ARCH_NAMES[gguf.MODEL_ARCH.QWEN2]
    keys, attention = gguf.Keys.LLM, gguf.Keys.Attention

    def required(key: str, kind: type) -> Any:
        return model.required(key.format(arch=name), kind)

    heads = required(attention.HEAD_COUNT, int)
    width = required(keys.EMBEDDING_LENGTH, int)
    scaling = model.value(gguf.Keys.Rope.SCALING_TYPE.format(arch=name), "none")
    factor = model.value(gguf.Keys.Rope.SCALING_FACTOR.format(arch=name))
    if scaling not in ("none", "linear"):
        raise model.unusable("rope scaling none or linear", scaling, "use the checkpoint that it was made from")
    return {
        "model_type": "qwen2",
        "architectures": ["Qwen2ForCausalLM"],
        "hidden_act": "silu",
        "hidden_size": width,
        "num_hidden_layers": required(keys.BLOCK_COUNT, int),
        "num_attention_heads": heads,
        "num_key_value_heads": required(attention.HEAD_COUNT_KV, int),
        "head_dim": model.value(attention.KEY_LENGTH.format(arch=name), width // max(heads, 1)),
        "intermediate_size": required(keys.FEED_FORWARD_LENGTH, int),
        "vocab_size": len(model.required(gguf.Keys.Tokenizer.LIST, list)),
        "max_position_embeddings": required(keys.CONTEXT_LENGTH, int),
        "rms_norm_eps": required(attention.LAYERNORM_RMS_EPS, float),
        "rope_theta": required(gguf.Keys.Rope.FREQ_BASE, float),
        "rope_scaling": {"type": "linear", "factor": factor} if scaling == "linear" else None,
        "use_sliding_window": False,
        "tie_word_embeddings": "output.weight" not in model.tensors,
    }


def _tokenizer(model: GgufFile) -> dict[str, Any]:
    keys, types = gguf.Keys.Tokenizer, gguf.TokenType
    found = (model.value(keys.MODEL), model.value(keys.PRE))
    if found[0] != "gpt2" or found[1] not in _SPLITS:
        fix = "use the checkpoint that it was made from"
        raise model.unusable(f"a tokenizer gpt2 with the pattern {' or '.join(_SPLITS)}", found, fix)
    tokens, kinds = model.required(keys.LIST, list), model.required(keys.TOKEN_TYPE, list)
    texts = model.required(keys.MERGES, list)
    if len(kinds) != len(tokens) or not all(isinstance(text, str) for text in (*tokens, *texts)):
        raise model.unusable("texts, and a type for each token", f"{len(kinds)} for {len(tokens)}", "download it again")
    vocab = {token: row for row, (token, kind) in enumerate(zip(tokens, kinds, strict=True)) if kind != types.UNUSED}
    added = [
        {"id": row, "content": tokens[row], "special": kind == types.CONTROL}
        for row, kind in enumerate(kinds)
        if kind in (types.CONTROL, types.USER_DEFINED)
    ]
    pairs = (tuple(text.split(" ")) for text in texts)
    merges = [(pair[0], pair[1]) for pair in pairs if len(pair) == 2 and vocab.keys() >= {*pair, "".join(pair)}]
    with library_errors(model.path):
        return qwen2_definition(vocab, merges, added)
