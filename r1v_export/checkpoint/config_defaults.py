"""What the published configuration classes take for keys that are absent.

These are not any checkpoint's values (`ps_version` for one is v1 here and v2 in every R1V), so what config.json says
always comes first.

Sources: configuration_internvl_chat.py and configuration_intern_vit.py of OpenGVLab/InternVL,
configuration_skywork_chat.py of Skywork/Skywork-R1V-38B, configuration_internvl.py, processing_internvl.py and
configuration_qwen2.py of transformers.
"""

from __future__ import annotations

from r1v_export.model_spec import IMAGENET_MEAN, IMAGENET_STD

CHAT = {
    "select_layer": -1,
    "downsample_ratio": 0.5,
    "ps_version": "v1",
    "dynamic_image_size": False,
    "use_thumbnail": False,
    "min_dynamic_patch": 1,
    "max_dynamic_patch": 6,
    "pad2square": False,
}
"""InternVLChatConfig and SkyworkR1VChatConfig."""

CHAT_VISION = {
    "num_channels": 3,
    "patch_size": 14,
    "image_size": 224,
    "hidden_size": 3200,
    "num_attention_heads": 25,
    "num_hidden_layers": 48,
    "intermediate_size": 12800,
    "qkv_bias": False,
    "qk_normalization": True,
    "hidden_act": "gelu",
    "use_moe": False,
    "norm_type": "rms_norm",
    "layer_norm_eps": 1e-6,
}
"""InternVisionConfig."""

NATIVE = {
    "downsample_ratio": 0.5,
    "vision_feature_layer": -1,
    "vision_feature_select_strategy": "default",
    "projector_hidden_act": "gelu",
    "tie_word_embeddings": True,
}
"""transformers' InternVLConfig."""

NATIVE_VISION = {
    "num_channels": 3,
    "patch_size": 14,
    "image_size": 448,
    "hidden_size": 1024,
    "num_attention_heads": 16,
    "num_hidden_layers": 24,
    "intermediate_size": 4096,
    "attention_bias": False,
    "use_qk_norm": False,
    "hidden_act": "gelu",
    "use_moe": False,
    "norm_type": "layer_norm",
    "layer_norm_eps": 1e-6,
    "use_absolute_position_embeddings": True,
    "use_mean_pooling": True,
}
"""transformers' InternVLVisionConfig."""

NATIVE_PROCESSOR = {
    "min_patches": 1,
    "max_patches": 12,
    "image_mean": list(IMAGENET_MEAN),
    "image_std": list(IMAGENET_STD),
    "resample": 3,
}
"""transformers' InternVLProcessor with its GotOcr2ImageProcessor."""

QWEN2 = {
    "vocab_size": 151936,
    "hidden_size": 4096,
    "intermediate_size": 22016,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "hidden_act": "silu",
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "use_sliding_window": False,
    "sliding_window": 4096,
    "tie_word_embeddings": False,
}
"""transformers' Qwen2Config."""
