"""config.json -> ModelSpec: what is read, which class defaults stand in, and what is refused."""

from __future__ import annotations

import json

import pytest

from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.checkpoint.synth import synthesize
from r1v_export.errors import CheckpointError
from r1v_export.processing.prompt import Turn, encode, template_of
from r1v_export.processing.tokenizer import Tokenizer
from tests.checkpoint.conftest import TINY, edit_json, refusal, set_key


@pytest.fixture
def native(tmp_path):
    return synthesize(
        tmp_path / "native", preset="nano", layout="internvl", vision_layers=2, language_layers=2, overrides=TINY
    )


def spec_of(folder):
    return Checkpoint.open(folder).spec


def test_the_38b_spec_is_read(tmp_path):
    """Values of model_family.md, sections 2 and 3."""
    spec = spec_of(synthesize(tmp_path, preset="r1v3-38b", weights="empty"))
    vision, language = spec.vision, spec.language
    assert (vision.hidden_size, vision.num_heads, vision.head_dim, vision.num_layers) == (3200, 25, 128, 45)
    assert (vision.intermediate_size, vision.patch_size, vision.image_size) == (12800, 14, 448)
    assert (vision.norm, vision.norm_eps, vision.qk_norm, vision.qkv_bias) == ("rms_norm", 1e-6, True, False)
    assert (language.hidden_size, language.num_layers, language.num_heads, language.num_kv_heads) == (5120, 64, 40, 8)
    assert (language.head_dim, language.intermediate_size, language.vocab_size) == (128, 27648, 151674)
    assert (language.rope_theta, language.rms_norm_eps, language.tie_word_embeddings) == (1e6, 1e-5, False)
    assert (spec.projector.shuffle, spec.projector.ps_version, spec.projector.in_features) == (2, "v2", 12800)
    assert (spec.tiling.tile_size, spec.tiling.max_tiles, spec.tokens_per_tile) == (448, 12, 256)
    assert (spec.tiling.dynamic, spec.tiling.use_thumbnail) == (True, True)
    assert (spec.image_token_id, spec.dtype, spec.layout) == (151667, "bfloat16", "internvl_chat")


def test_both_layouts_describe_the_same_model(tiny, native):
    ours, theirs = spec_of(tiny), spec_of(native)
    same = {"layout": "internvl", "architecture": "InternVLForConditionalGeneration", "template": "internvl2_5"}
    assert theirs == ours.model_copy(update=same)


@pytest.mark.parametrize(
    ("key", "read"),
    [
        ("ps_version", lambda spec: spec.projector.ps_version == "v1"),
        ("select_layer", lambda spec: spec.vision.num_layers == 2),
        ("max_dynamic_patch", lambda spec: spec.tiling.max_tiles == 6),
        ("min_dynamic_patch", lambda spec: spec.tiling.min_tiles == 1),
        ("use_thumbnail", lambda spec: spec.tiling.use_thumbnail is False),
        ("dynamic_image_size", lambda spec: spec.tiling.dynamic is False),
        ("downsample_ratio", lambda spec: spec.projector.shuffle == 2),
        ("force_image_size", lambda spec: spec.tiling.tile_size == 112),
        ("torch_dtype", lambda spec: spec.dtype == "bfloat16"),
        ("llm_config.rope_theta", lambda spec: spec.language.rope_theta == 10000.0),
        ("llm_config.rms_norm_eps", lambda spec: spec.language.rms_norm_eps == 1e-6),
        ("vision_config.norm_type", lambda spec: spec.vision.norm == "rms_norm"),
        ("vision_config.qk_normalization", lambda spec: spec.vision.qk_norm),
        ("vision_config.qkv_bias", lambda spec: not spec.vision.qkv_bias),
        ("vision_config.layer_norm_eps", lambda spec: spec.vision.norm_eps == 1e-6),
        ("vision_config.patch_size", lambda spec: spec.vision.patch_size == 14),
    ],
)
@pytest.mark.parametrize("absent", [..., None], ids=["removed", "null"])
def test_an_absent_key_takes_the_class_default(tiny, key, read, absent):
    set_key(tiny, key, absent)
    assert read(spec_of(tiny))


def test_llm_config_may_be_called_text_config(tiny):
    expected = spec_of(tiny)
    edit_json(tiny / "config.json", lambda config: config.update(text_config=config.pop("llm_config")))
    assert spec_of(tiny) == expected


def test_the_dtype_may_be_declared_the_way_transformers_5_does(tiny):
    set_key(tiny, "torch_dtype", ...)
    set_key(tiny, "dtype", "float16")
    assert spec_of(tiny).dtype == "float16"


@pytest.mark.parametrize("key", ["rope_parameters", "rope_scaling"])
def test_rope_theta_may_stand_inside_the_rope_parameters(tiny, key):
    set_key(tiny, "llm_config.rope_theta", ...)
    set_key(tiny, f"llm_config.{key}", {"rope_type": "default", "rope_theta": 123456.0})
    assert spec_of(tiny).language.rope_theta == 123456.0


@pytest.mark.parametrize(("select_layer", "blocks"), [(-1, 2), (-2, 1), (2, 2), (1, 1)])
def test_select_layer_counts_the_embedding_as_state_zero(tiny, select_layer, blocks):
    set_key(tiny, "select_layer", select_layer)
    assert spec_of(tiny).vision.num_layers == blocks


@pytest.mark.parametrize("architecture", ["SkyworkR1VChatModel", "SkyworkChatModel", "InternVLChatModel"])
@pytest.mark.parametrize("model_type", ["skywork_chat", "internvl_chat"])
def test_every_published_architecture_and_model_type_is_accepted(tiny, architecture, model_type):
    set_key(tiny, "architectures", [architecture])
    set_key(tiny, "model_type", model_type)
    assert spec_of(tiny).architecture == architecture


def test_the_model_type_stands_in_for_absent_architectures(tiny):
    set_key(tiny, "architectures", ...)
    assert spec_of(tiny).architecture == "SkyworkR1VChatModel"


@pytest.mark.parametrize(
    "changes",
    [
        {"architectures": ["Qwen3VLForConditionalGeneration"], "model_type": "qwen3_vl"},
        {"architectures": ["LlamaForCausalLM"]},
        {"architectures": ..., "model_type": "llava"},
        {"architectures": ..., "model_type": ...},
        {"architectures": [["SkyworkR1VChatModel"]]},
    ],
)
def test_another_architecture_is_refused_and_the_supported_ones_are_named(tiny, changes):
    for key, value in changes.items():
        set_key(tiny, key, value)
    error = refusal(tiny)
    assert "architecture is not supported" in error.what
    assert "SkyworkR1VChatModel" in error.expected
    assert "InternVL3" in error.fix


@pytest.mark.parametrize(
    "named",
    ["InternLM2ForCausalLM", "InternLM3ForCausalLM", "LlamaForCausalLM", "Qwen3ForCausalLM", "Qwen3MoeForCausalLM"],
)
def test_another_language_model_is_refused_by_name(tiny, named):
    set_key(tiny, "llm_config.architectures", [named])
    error = refusal(tiny)
    assert "language model is not supported" in error.what
    assert error.found == named
    assert "Qwen2ForCausalLM" in error.expected


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("ps_version", "v3", "v1 or v2"),
        ("select_layer", 0, "1 to 2, or -2 to -1"),
        ("select_layer", 3, "1 to 2, or -2 to -1"),
        ("select_layer", -3, "1 to 2, or -2 to -1"),
        ("downsample_ratio", 0.3, "1 divided by an integer"),
        ("force_image_size", 100, "multiple of 28"),
        ("force_image_size", [112, 224], "two equal ones"),
        ("max_dynamic_patch", 0, "a positive integer"),
        ("min_dynamic_patch", 7, "at least min_dynamic_patch 7"),
        ("use_thumbnail", "yes", "true or false"),
        ("vision_config", ..., "an object"),
        ("vision_config", [], "an object"),
        ("pad2square", True, "false"),
        ("use_llm_lora", 16, "no LoRA"),
        ("use_backbone_lora", 8, "no LoRA"),
        ("system_message", ["You"], "a text"),
        ("vision_config.use_moe", True, "false"),
        ("llm_config.moe_config", {"num_experts": 4}, "none"),
        ("llm_config", ..., "an object"),
        ("vision_config.hidden_act", "quick_gelu", "gelu"),
        ("vision_config.norm_type", "batch_norm", "rms_norm or layer_norm"),
        ("vision_config.num_channels", 4, "3"),
        ("vision_config.num_attention_heads", 3, "a divisor of hidden_size 64"),
        ("vision_config.hidden_size", "64", "a positive integer"),
        ("llm_config.hidden_act", "gelu", "silu"),
        ("llm_config.num_key_value_heads", 3, "a divisor of 4 heads"),
        ("llm_config.num_attention_heads", 64, "heads of an even size"),
        ("llm_config.rope_scaling", {"type": "longrope", "factor": 2.0}, "default or linear or dynamic or yarn"),
        ("llm_config.rope_scaling", {"rope_type": "mrope"}, "default or linear or dynamic or yarn"),
        ("llm_config.rope_theta", -1, "a positive number"),
        ("llm_config.rms_norm_eps", "1e-6", "a positive number"),
        ("llm_config.layer_types", ["full_attention", "sliding_attention"], "full_attention throughout"),
        ("template", "vicuna", "internvl2_5"),
    ],
)
def test_a_value_that_cannot_be_used_is_named(tiny, key, value, message):
    if key == "template":
        set_key(tiny, "architectures", ["InternVLChatModel"])
        set_key(tiny, "model_type", "internvl_chat")
    set_key(tiny, key, value)
    error = refusal(tiny)
    assert key.split(".")[-1] in str(error)
    assert "config.json" in str(error.where)
    assert message in error.expected


@pytest.mark.parametrize(
    ("changes", "where", "message"),
    [
        ({"rope_scaling": {"mrope_section": [8, 12, 12], "type": "default"}}, "mrope_section", "keys of type default"),
        ({"rope_scaling": {"factor": 2.0}}, "rope_scaling: type", "default or linear or dynamic or yarn"),
        ({"rope_scaling": {"rope_type": "default", "type": "yarn", "factor": 4.0}}, "rope_type", "the same as type"),
        (
            {"rope_scaling": {"type": "dynamic", "factor": 2.0, "original_max_position_embeddings": 512}},
            "original_max_position_embeddings",
            "max_position_embeddings 1024, or none",
        ),
        ({"rope_scaling": {"type": "dynamic", "alpha": 1000.0, "factor": 1.0}}, "alpha", "keys of type dynamic"),
        ({"rope_scaling": {"type": "linear"}}, "factor", "a positive number"),
        ({"rope_scaling": {"type": "linear", "factor": 0.5}}, "factor", "at least 1"),
        ({"rope_scaling": {"type": "yarn", "factor": 2.0, "beta_fast": 1, "beta_slow": 2}}, "beta_fast", "beta_slow"),
        ({"rope_scaling": {"type": "yarn", "factor": 1e9}}, "factor", "a context up to"),
        ({"rope_scaling": {"type": "yarn", "factor": 2.0}, "rope_theta": 1.0}, "rope_theta", "more than 1"),
        ({"rope_scaling": {"type": "default", "partial_rotary_factor": 0.5}}, "partial_rotary_factor", "1"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor", "1"),
        (
            {"rope_scaling": {"type": "default"}, "rope_parameters": {"rope_type": "linear", "factor": 2.0}},
            "rope_scaling",
            "the same as rope_parameters",
        ),
    ],
)
def test_a_rope_that_has_no_single_meaning_is_refused(tiny, changes, where, message):
    for key, value in changes.items():
        set_key(tiny, f"llm_config.{key}", value)
    error = refusal(tiny)
    assert where in str(error.where)
    assert message in error.expected


def test_a_sliding_window_must_cover_the_context(tiny):
    """transformers turned the meaning of max_window_layers round, so that it cannot say which layers have a window."""
    set_key(tiny, "llm_config.use_sliding_window", True)
    set_key(tiny, "llm_config.max_window_layers", 2)
    set_key(tiny, "llm_config.sliding_window", 1024)
    assert spec_of(tiny).language.num_layers == 2
    set_key(tiny, "llm_config.sliding_window", 1023)
    assert "use_sliding_window" in refusal(tiny).what


def test_a_key_that_is_not_used_is_listed_once_and_those_of_published_configurations_are_not(tiny):
    assert Checkpoint.open(tiny).warnings == ()
    for key in ("logit_scale", "llm_config.query_pre_attn_scalar", "vision_config.window_size"):
        set_key(tiny, key, 1)
    set_key(tiny, "llm_config.attention_sink", None)
    expected = "config.json: not used: logit_scale, vision_config.window_size, llm_config.query_pre_attn_scalar"
    assert Checkpoint.open(tiny).warnings == (expected,)


def test_the_system_message_of_a_checkpoint_replaces_the_templates(tiny):
    assert spec_of(tiny).system_message is None
    set_key(tiny, "system_message", "You are a radiologist.")
    spec = spec_of(tiny)
    assert spec.system_message == "You are a radiologist."
    tokenizer = Tokenizer.from_folder(tiny)
    text = tokenizer.decode(encode(tokenizer, template_of(spec), [Turn("user", "Hi")], [], 1))
    assert text == "system\nYou are a radiologist.\nuser\nHi\nassistant\n<think>\n"


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("vision_config.use_mean_pooling", False, "true"),
        ("vision_config.use_absolute_position_embeddings", False, "true"),
        ("vision_config.layer_norm_eps", 1e-5, "1e-06 with use_qk_norm"),
        ("vision_feature_select_strategy", "full", "default"),
        ("vision_feature_layer", [-2, -1], "an integer"),
        ("projector_hidden_act", "relu", "gelu"),
        ("image_token_id", 5, "as in the tokenizer"),
    ],
)
def test_a_native_variant_that_has_no_code_is_refused(native, key, value, message):
    set_key(native, key, value)
    error = refusal(native)
    assert key.split(".")[-1] in error.what
    assert message in error.expected


def test_native_tiling_comes_from_the_image_processor(native):
    edit_json(native / "preprocessor_config.json", lambda config: config.update(min_patches=2, max_patches=5))
    assert (spec_of(native).tiling.min_tiles, spec_of(native).tiling.max_tiles) == (2, 5)
    settings = json.loads((native / "preprocessor_config.json").read_text())
    (native / "preprocessor_config.json").unlink()
    (native / "processor_config.json").write_text(json.dumps({"image_processor": settings | {"max_patches": 4}}))
    assert spec_of(native).tiling.max_tiles == 4
    (native / "processor_config.json").unlink()
    assert (spec_of(native).tiling.tile_size, spec_of(native).tiling.max_tiles) == (112, 12)


@pytest.mark.parametrize(("key", "value"), [("image_mean", [0.5] * 3), ("image_std", [0.5] * 3), ("resample", 2)])
def test_another_normalization_or_filter_is_refused(native, key, value):
    edit_json(native / "preprocessor_config.json", lambda config: config.update({key: value}))
    error = refusal(native)
    assert key in error.what
    assert "preprocessor_config.json" in error.where


def test_as_many_key_value_heads_as_heads_need_no_key(tmp_path):
    overrides = TINY | {"llm_config.num_key_value_heads": 4}
    folder = synthesize(tmp_path, preset="nano", overrides=overrides)
    set_key(folder, "llm_config.num_key_value_heads", None)
    assert spec_of(folder).language.num_kv_heads == 4


def test_an_image_token_in_the_configuration_alone_makes_no_prompt(native):
    for name in ("tokenizer.json", "tokenizer_config.json", "added_tokens.json"):
        edit_json(native / name, lambda content: without_token(content, "<IMG_CONTEXT>"))
    assert "no <IMG_CONTEXT> token" in refusal(native).what


def without_token(content, token):
    """A tokenizer file's content without one of its tokens."""
    if isinstance(content, dict):
        kept = {key: value for key, value in content.items() if key != token and not is_token(value, token)}
        return {key: without_token(value, token) for key, value in kept.items()}
    if isinstance(content, list):
        return [without_token(value, token) for value in content if not is_token(value, token)]
    return content


def is_token(value, token):
    return isinstance(value, dict) and value.get("content") == token


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000])
@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_a_broken_json_file_is_named(tiny, name, content):
    (tiny / name).write_bytes(content)
    error = refusal(tiny)
    assert name in error.what
    assert "copy" in error.fix


def test_a_missing_configuration_is_named(tiny):
    (tiny / "config.json").unlink()
    error = refusal(tiny)
    assert error.what == "The checkpoint has no config.json."
    assert "model.safetensors" in str(error.found)


JUNK = [None, True, -1, 0, 0.5, 10**30, "x", [0], {"a": 1}]


def leaves(config: dict, prefix: str = ""):
    for key, value in config.items():
        yield prefix + key
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")


@pytest.mark.parametrize("layout", ["internvl_chat", "internvl"])
def test_no_value_of_any_key_ends_in_a_traceback(tiny, native, layout):
    folder = tiny if layout == "internvl_chat" else native
    original = (folder / "config.json").read_bytes()
    refused = 0
    for key in leaves(json.loads(original)):
        for junk in JUNK:
            (folder / "config.json").write_bytes(original)
            set_key(folder, key, junk)
            try:
                Checkpoint.open(folder)
            except CheckpointError:
                refused += 1
    assert refused > 100
