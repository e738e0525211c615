"""Keys of the published configurations: those that are read, and those that change nothing here.

What stands in neither table is reported once as not used. Nulls are as good as absent.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from r1v_export.errors import UsageError
from r1v_export.quoting import did_you_mean

Part = Literal["top", "vision", "language"]

_READ: Mapping[Part, frozenset[str]] = {
    "top": frozenset(
        [
            "architectures",
            "auto_map",
            "downsample_ratio",
            "dtype",
            "dynamic_image_size",
            "force_image_size",
            "image_token_id",
            "image_token_index",
            "llm_config",
            "max_dynamic_patch",
            "min_dynamic_patch",
            "model_type",
            "pad2square",
            "projector_hidden_act",
            "ps_version",
            "quantization_config",
            "select_layer",
            "system_message",
            "template",
            "text_config",
            "tie_word_embeddings",
            "torch_dtype",
            "use_backbone_lora",
            "use_llm_lora",
            "use_thumbnail",
            "vision_config",
            "vision_feature_layer",
            "vision_feature_select_strategy",
        ]
    ),
    "vision": frozenset(
        [
            "attention_bias",
            "hidden_act",
            "hidden_size",
            "image_size",
            "intermediate_size",
            "layer_norm_eps",
            "norm_type",
            "num_attention_heads",
            "num_channels",
            "num_hidden_layers",
            "patch_size",
            "qk_normalization",
            "qkv_bias",
            "use_absolute_position_embeddings",
            "use_mean_pooling",
            "use_moe",
            "use_qk_norm",
        ]
    ),
    "language": frozenset(
        [
            "architectures",
            "dtype",
            "head_dim",
            "hidden_act",
            "hidden_size",
            "intermediate_size",
            "layer_types",
            "max_position_embeddings",
            "max_window_layers",
            "model_type",
            "moe_config",
            "num_attention_heads",
            "num_hidden_layers",
            "num_key_value_heads",
            "original_max_position_embeddings",
            "partial_rotary_factor",
            "quantization_config",
            "rms_norm_eps",
            "rope_parameters",
            "rope_scaling",
            "rope_theta",
            "sliding_window",
            "tie_word_embeddings",
            "torch_dtype",
            "use_sliding_window",
            "vocab_size",
        ]
    ),
}

_TRANSFORMERS = frozenset(
    [
        "_attn_implementation_autoset",
        "_attn_implementation_internal",
        "_commit_hash",
        "_name_or_path",
        "add_cross_attention",
        "architectures",
        "attention_dropout",
        "attn_implementation",
        "auto_map",
        "bad_words_ids",
        "begin_suppress_tokens",
        "bos_token_id",
        "chunk_size_feed_forward",
        "cross_attention_hidden_size",
        "decoder_start_token_id",
        "diversity_penalty",
        "do_sample",
        "dtype",
        "early_stopping",
        "encoder_no_repeat_ngram_size",
        "eos_token_id",
        "exponential_decay_length_penalty",
        "finetuning_task",
        "forced_bos_token_id",
        "forced_eos_token_id",
        "id2label",
        "initializer_factor",
        "initializer_range",
        "is_decoder",
        "is_encoder_decoder",
        "label2id",
        "length_penalty",
        "max_length",
        "min_length",
        "model_type",
        "no_repeat_ngram_size",
        "num_beam_groups",
        "num_beams",
        "num_return_sequences",
        "output_attentions",
        "output_hidden_states",
        "output_scores",
        "pad_token_id",
        "prefix",
        "problem_type",
        "pruned_heads",
        "remove_invalid_values",
        "repetition_penalty",
        "return_dict",
        "return_dict_in_generate",
        "sep_token_id",
        "suppress_tokens",
        "task_specific_params",
        "temperature",
        "tf_legacy_loss",
        "tie_encoder_decoder",
        "tie_word_embeddings",
        "tokenizer_class",
        "top_k",
        "top_p",
        "torch_dtype",
        "torchscript",
        "transformers_version",
        "typical_p",
        "use_bfloat16",
        "use_cache",
    ]
)
"""What every configuration of transformers may hold: training, generation (generation_config.json counts) and
bookkeeping."""

_HARMLESS: Mapping[Part, frozenset[str]] = {
    "top": frozenset(
        [
            "hidden_size",
            "image_end_token_id",
            "image_fold",
            "image_seq_length",
            "image_start_token_id",
            "num_image_token",
            "use_flash_attn",
        ]
    ),
    "vision": frozenset(
        # InternVL2's configurations have the experts' settings next to `use_moe: false`.
        [
            "capacity_factor",
            "drop_path_rate",
            "dropout",
            "eval_capacity_factor",
            "hidden_dropout_prob",
            "laux_allreduce",
            "layer_scale_init_value",
            "moe_coeff_ratio",
            "moe_intermediate_size",
            "moe_output_scale",
            "noisy_gate_policy",
            "num_experts",
            "num_routed_experts",
            "num_shared_experts",
            "projection_dropout",
            "shared_expert_intermediate_size",
            "use_flash_attn",
            "use_mask_token",
            "use_residual",
            "use_rts",
            "use_weighted_residual",
        ]
    ),
    "language": frozenset(["use_flash_attn"]),
}


SECTIONS: Mapping[str, Part] = {"vision_config": "vision", "llm_config": "language"}
"""Objects in a configuration of the `internvl_chat` layout, and what their keys are of."""


def require_known_setting(key: str) -> None:
    """Refuse a key that no configuration of the `internvl_chat` layout has.

    Args:
        key: dotted: `llm_config.rope_theta`. Keys inside one of these, as of `rope_scaling`, are not checked.

    Raises:
        UsageError: there is no such key.
    """
    section, _, inner = key.partition(".")
    name = inner.partition(".")[0] if section in SECTIONS and inner else section
    part = SECTIONS[section] if section in SECTIONS and inner else "top"
    if not list(unused_keys(part, {name: True})):
        return
    prefix = f"{section}." if part != "top" else ""
    known = {f"{prefix}{each}" for each in _READ[part]}
    elsewhere = [f"{other}.{name}" for other, part in SECTIONS.items() if name in _READ[part]]
    nearest = f"did you mean {' or '.join(elsewhere)}?" if elsewhere else did_you_mean(key, sorted(known))
    raise UsageError(
        "No configuration has such a key.",
        where=f"--set {key}",
        expected=", ".join(sorted(known)) + ("" if prefix else ", or a key of vision_config or llm_config"),
        found=key,
        fix=nearest or "choose one of these",
    )


def unused_keys(part: Part, values: Mapping[str, Any]) -> Iterator[str]:
    """Keys that are set, and that this program neither reads nor knows to be harmless."""
    known = _READ[part] | _HARMLESS[part] | _TRANSFORMERS
    return (key for key, value in values.items() if value is not None and key not in known)
