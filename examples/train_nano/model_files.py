"""The files around the weights: config.json, the tokenizer and its relatives, in the form R1V3 publishes them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer

from r1v_export.checkpoint.hub_files import (
    image_processor_config,
    readable_config,
    write_configuration_code,
    write_json,
)
from r1v_export.nano.dataset import samples

ORDINARY_TOKENS = 494
TOKENIZER_SAMPLES = 20_000

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<img>",
    "</img>",
    "<IMG_CONTEXT>",
    "<quad>",
    "</quad>",
    "<ref>",
    "</ref>",
    "<box>",
    "</box>",
)
"""As in InternVL and R1V3; `<think>` is not among them there either, it is plain text."""

# Qwen2's split pattern, verbatim.
SPLIT_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n<think>\\n' }}{% endif %}"
)

VISION_CONFIG: dict[str, Any] = {
    "architectures": ["InternVisionModel"],
    "attention_dropout": 0.0,
    "drop_path_rate": 0.0,
    "dropout": 0.0,
    "hidden_act": "gelu",
    "hidden_size": 256,
    "image_size": 112,
    "initializer_factor": 1.0,
    "initializer_range": 0.02,
    "intermediate_size": 768,
    "layer_norm_eps": 1e-06,
    "model_type": "intern_vit_6b",
    "norm_type": "rms_norm",
    "num_attention_heads": 4,
    "num_channels": 3,
    "num_hidden_layers": 4,
    "patch_size": 14,
    "qk_normalization": True,
    "qkv_bias": False,
    "torch_dtype": "bfloat16",
    "use_bfloat16": True,
    "use_flash_attn": True,
}

LLM_CONFIG: dict[str, Any] = {
    "architectures": ["Qwen2ForCausalLM"],
    "attention_dropout": 0.0,
    "hidden_act": "silu",
    "hidden_size": 256,
    "initializer_range": 0.02,
    "intermediate_size": 512,
    "max_position_embeddings": 4096,
    "max_window_layers": 4,
    "model_type": "qwen2",
    "num_attention_heads": 4,
    "num_hidden_layers": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000.0,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "use_sliding_window": False,
}


def write_model_files(folder: Path) -> None:
    """Train the tokenizer on generated texts and write every file but the weights and the model card."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = train_tokenizer(_texts(TOKENIZER_SAMPLES))
    tokenizer.save(str(folder / "tokenizer.json"))
    tokenizer.model.save(str(folder))  # vocab.json and merges.txt
    ids = {token: tokenizer.token_to_id(token) for token in SPECIAL_TOKENS}
    write_json(folder / "added_tokens.json", ids)
    write_json(folder / "special_tokens_map.json", _special_tokens_map())
    write_json(folder / "tokenizer_config.json", _tokenizer_config(ids))
    config = readable_config(_config(tokenizer.get_vocab_size(), ids))
    write_json(folder / "config.json", config)
    write_configuration_code(folder, config)
    write_json(folder / "preprocessor_config.json", image_processor_config(VISION_CONFIG["image_size"]))
    write_json(folder / "generation_config.json", _generation_config(ids))


def train_tokenizer(texts: Iterable[str]) -> Tokenizer:
    """A byte-level BPE in Qwen2's form, special tokens behind the ordinary vocabulary."""
    tokenizer = Tokenizer(BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=ORDINARY_TOKENS, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in SPECIAL_TOKENS])
    return tokenizer


def _texts(count: int) -> Iterable[str]:
    for sample in samples("train", count):
        yield f"user\n\n{sample.question}\nassistant\n<think>\n{sample.reasoning}\n</think>\n\n{sample.answer}"


def _special_tokens_map() -> dict[str, Any]:
    return {
        "additional_special_tokens": list(SPECIAL_TOKENS[1:]),
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
    }


def _tokenizer_config(ids: dict[str, int]) -> dict[str, Any]:
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    return {
        "add_bos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": {str(index): {"content": token, **flags} for token, index in ids.items()},
        **_special_tokens_map(),
        "bos_token": None,
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "errors": "replace",
        "model_max_length": LLM_CONFIG["max_position_embeddings"],
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }


def _config(vocab_size: int, ids: dict[str, int]) -> dict[str, Any]:
    return {
        "architectures": ["SkyworkR1VChatModel"],
        "downsample_ratio": 0.5,
        "dynamic_image_size": True,
        "force_image_size": 112,
        "llm_config": {**LLM_CONFIG, "eos_token_id": ids["<|im_end|>"], "vocab_size": vocab_size},
        "max_dynamic_patch": 4,
        "min_dynamic_patch": 1,
        "model_type": "skywork_chat",
        "pad2square": False,
        "ps_version": "v2",
        "select_layer": -1,
        "template": "skywork-r1v3",
        "torch_dtype": "bfloat16",
        "use_backbone_lora": 0,
        "use_llm_lora": 0,
        "use_thumbnail": True,
        "vision_config": VISION_CONFIG,
    }


def _generation_config(ids: dict[str, int]) -> dict[str, Any]:
    return {
        "do_sample": False,
        "eos_token_id": [ids["<|im_end|>"], ids["<|endoftext|>"]],
        "max_new_tokens": 256,
        "pad_token_id": ids["<|endoftext|>"],
    }


if __name__ == "__main__":
    write_model_files(Path(__file__).parents[2] / "r1v_export/nano/model")
