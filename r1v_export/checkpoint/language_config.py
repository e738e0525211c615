"""`llm_config` or `text_config` -> LanguageSpec: Qwen2, with attention over everything before."""

from __future__ import annotations

from r1v_export.checkpoint.config_section import UNSUPPORTED, Section
from r1v_export.checkpoint.rope_config import read_rope
from r1v_export.count import Count
from r1v_export.errors import CheckpointError
from r1v_export.model_spec import LanguageSpec

_QWEN2 = ("Qwen2ForCausalLM", "Qwen2Model", "qwen2")


def read_language(llm: Section, *, tied: bool) -> LanguageSpec:
    """The decoder that a configuration describes.

    Raises:
        CheckpointError: another language model than Qwen2, or a variant of it that is not supported.
    """
    _check_architecture(llm)
    llm.choice("hidden_act", "silu")
    if llm.has("moe_config"):
        raise llm.wrong("moe_config", "none", llm.get("moe_config"), UNSUPPORTED)
    rope = read_rope(llm)
    _check_full_attention(llm, rope.positions)
    hidden_size, num_heads = llm.size("hidden_size"), llm.size("num_attention_heads")
    num_kv_heads = llm.size("num_key_value_heads") if llm.has("num_key_value_heads") else num_heads
    if num_heads % num_kv_heads:
        raise llm.wrong("num_key_value_heads", f"a divisor of {Count(num_heads, 'head')}", num_kv_heads)
    head_dim = llm.size("head_dim") if llm.has("head_dim") else hidden_size // num_heads
    if head_dim % 2 or (hidden_size % num_heads and not llm.has("head_dim")):
        raise llm.wrong("num_attention_heads", f"heads of an even size in {Count(hidden_size, 'feature')}", num_heads)
    return LanguageSpec(
        hidden_size=hidden_size,
        num_layers=llm.layers("num_hidden_layers"),
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        intermediate_size=llm.size("intermediate_size"),
        vocab_size=llm.size("vocab_size"),
        rms_norm_eps=llm.number("rms_norm_eps"),
        rope_theta=rope.theta,
        rope_scaling=rope.scaling,
        max_position_embeddings=rope.positions,
        tie_word_embeddings=tied,
    )


def _check_architecture(llm: Section) -> None:
    architectures = llm.get("architectures")
    named = architectures[0] if isinstance(architectures, list) and architectures else llm.get("model_type")
    if named not in _QWEN2:
        raise CheckpointError(
            "The checkpoint's language model is not supported.",
            where=llm.path,
            expected="Qwen2ForCausalLM (Qwen2, Qwen2.5, QwQ, DeepSeek-R1-Distill-Qwen)",
            found=named,
            fix="use a family member with a Qwen2.5 language model",
        )


def _check_full_attention(llm: Section, positions: int) -> None:
    """Every layer attends to everything before it.

    Whether `max_window_layers` counts the layers with the window or those without has changed in transformers, so that
    only a window as long as the context is without effect.
    """
    if llm.flag("use_sliding_window") and llm.size("sliding_window") < positions:
        found = f"true, with a sliding_window of {llm.size('sliding_window')}"
        raise llm.wrong("use_sliding_window", f"false, or a window of the context's {positions}", found, UNSUPPORTED)
    kinds = llm.get("layer_types") or []
    if not isinstance(kinds, list) or any(kind != "full_attention" for kind in kinds):
        found_kinds = sorted({str(kind) for kind in kinds}) if isinstance(kinds, list) else kinds
        raise llm.wrong("layer_types", "full_attention throughout", found_kinds, UNSUPPORTED)
