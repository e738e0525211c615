"""Published configurations of every family version, as data for `synth`.

Read from the public configurations where those are public; what differs per version (epsilon, vocabulary, positions)
is each version's own.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

Config = dict[str, Any]

INTERNVIT_6B: Config = {
    "model_type": "intern_vit_6b",
    "architectures": ["InternVisionModel"],
    "num_channels": 3,
    "hidden_size": 3200,
    "num_attention_heads": 25,
    "num_hidden_layers": 45,
    "intermediate_size": 12800,
    "patch_size": 14,
    "image_size": 448,
    "norm_type": "rms_norm",
    "qk_normalization": True,
    "qkv_bias": False,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-6,
}
INTERNVIT_300M: Config = INTERNVIT_6B | {
    "hidden_size": 1024,
    "num_attention_heads": 16,
    "num_hidden_layers": 24,
    "intermediate_size": 4096,
    "norm_type": "layer_norm",
    "qk_normalization": False,
    "qkv_bias": True,
}
INTERNVIT_NANO: Config = INTERNVIT_6B | {
    "hidden_size": 256,
    "num_attention_heads": 4,
    "num_hidden_layers": 4,
    "intermediate_size": 768,
    "image_size": 112,
}


def _qwen2(hidden: int, layers: int, heads: int, kv_heads: int, intermediate: int, **rest: Any) -> Config:
    return {
        "model_type": "qwen2",
        "architectures": ["Qwen2ForCausalLM"],
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": intermediate,
        "hidden_act": "silu",
        "vocab_size": 151674,
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "rope_scaling": None,
        "use_sliding_window": False,
        "max_window_layers": layers,
        "tie_word_embeddings": False,
    } | rest


QWEN2_5_32B = (5120, 64, 40, 8, 27648)

_CHATML_TOKENS = {"<|endoftext|>": 151643, "<|im_start|>": 151644, "<|im_end|>": 151645}
_IMAGE_TOKENS = ("<img>", "</img>", "<IMG_CONTEXT>", "<quad>", "</quad>", "<ref>", "</ref>", "<box>", "</box>")


def _image_tokens(first_id: int) -> dict[str, int]:
    return {token: first_id + offset for offset, token in enumerate(_IMAGE_TOKENS)}


INTERNVL3_ROPE = {"factor": 2.0, "rope_type": "dynamic", "type": "dynamic"}

INTERNVL_TOKENS = _CHATML_TOKENS | _image_tokens(151665)
QWQ_TOKENS = _CHATML_TOKENS | {"<think>": 151667, "</think>": 151668} | _image_tokens(151669)
DEEPSEEK_TOKENS = {
    "<｜end▁of▁sentence｜>": 151643,
    "<｜User｜>": 151644,
    "<｜Assistant｜>": 151645,
    "<｜begin▁of▁sentence｜>": 151646,
    "<think>": 151648,
    "</think>": 151649,
} | _image_tokens(151665)
NANO_TOKENS = {
    token: 512 + offset for offset, token in enumerate([*_CHATML_TOKENS, "<img>", "</img>", "<IMG_CONTEXT>"])
}


@dataclass(frozen=True)
class Preset:
    """One family member: its configuration in the `internvl_chat` layout, and the tokens its tokenizer adds."""

    vision: Config
    language: Config
    tokens: dict[str, int]
    end_token: str = "<|im_end|>"
    top: Config = field(default_factory=dict)

    def config(self) -> Config:
        """A complete config.json."""
        return {
            "architectures": ["InternVLChatModel"],
            "model_type": "internvl_chat",
            "downsample_ratio": 0.5,
            "ps_version": "v2",
            "select_layer": -1,
            "force_image_size": self.vision["image_size"],
            "dynamic_image_size": True,
            "use_thumbnail": True,
            "min_dynamic_patch": 1,
            "max_dynamic_patch": 12,
            "template": "internvl2_5",
            "torch_dtype": "bfloat16",
            "tie_word_embeddings": self.language["tie_word_embeddings"],
            **self.top,
            "vision_config": dict(self.vision),
            "llm_config": dict(self.language),
        }


_SKYWORK: Config = {"architectures": ["SkyworkR1VChatModel"], "model_type": "skywork_chat", "template": None}

PRESETS: dict[str, Preset] = {
    "r1v1-38b": Preset(
        INTERNVIT_6B,
        _qwen2(*QWEN2_5_32B, vocab_size=152064, rms_norm_eps=1e-5, max_position_embeddings=131072),
        DEEPSEEK_TOKENS,
        "<｜end▁of▁sentence｜>",
        _SKYWORK,
    ),
    "r1v2-38b": Preset(
        INTERNVIT_6B,
        _qwen2(*QWEN2_5_32B, vocab_size=152064, rms_norm_eps=1e-5, max_position_embeddings=40960),
        QWQ_TOKENS,
        top=_SKYWORK,
    ),
    "r1v3-38b": Preset(INTERNVIT_6B, _qwen2(*QWEN2_5_32B, rms_norm_eps=1e-5), INTERNVL_TOKENS, top=_SKYWORK),
    "internvl2_5-38b": Preset(INTERNVIT_6B, _qwen2(*QWEN2_5_32B), INTERNVL_TOKENS),
    "internvl3-38b": Preset(
        INTERNVIT_6B, _qwen2(*QWEN2_5_32B, rms_norm_eps=1e-5, rope_scaling=INTERNVL3_ROPE), INTERNVL_TOKENS
    ),
    "internvl3-78b": Preset(
        INTERNVIT_6B, _qwen2(8192, 80, 64, 8, 29568, rms_norm_eps=1e-5, rope_scaling=INTERNVL3_ROPE), INTERNVL_TOKENS
    ),
    "internvl3-1b": Preset(INTERNVIT_300M, _qwen2(896, 24, 14, 2, 4864, rope_scaling=INTERNVL3_ROPE), INTERNVL_TOKENS),
    "internvl3-2b": Preset(INTERNVIT_300M, _qwen2(1536, 28, 12, 2, 8960, rope_scaling=INTERNVL3_ROPE), INTERNVL_TOKENS),
    "internvl3-8b": Preset(
        INTERNVIT_300M, _qwen2(3584, 28, 28, 4, 18944, rope_scaling=INTERNVL3_ROPE), INTERNVL_TOKENS
    ),
    "internvl3-14b": Preset(
        INTERNVIT_300M, _qwen2(5120, 48, 40, 8, 13824, rms_norm_eps=1e-5, rope_scaling=INTERNVL3_ROPE), INTERNVL_TOKENS
    ),
    "nano": Preset(
        INTERNVIT_NANO,
        _qwen2(256, 4, 4, 2, 512, vocab_size=640, max_position_embeddings=1024, rope_theta=10000.0),
        NANO_TOKENS,
        top=_SKYWORK | {"max_dynamic_patch": 6},
    ),
}
