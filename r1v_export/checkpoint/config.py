"""config.json, in each of the published layouts -> ModelSpec.

Everything that changes a number is read; what this program has no code for is refused, never ignored.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from r1v_export.checkpoint import config_defaults as defaults
from r1v_export.checkpoint.config_keys import Part, unused_keys
from r1v_export.checkpoint.config_section import UNSUPPORTED, Section
from r1v_export.checkpoint.language_config import read_language
from r1v_export.checkpoint.listing import shorten
from r1v_export.checkpoint.template import choose_template
from r1v_export.checkpoint_json import read_json_object
from r1v_export.errors import CheckpointError
from r1v_export.model_spec import ModelSpec, ProjectorSpec, TilingSpec, VisionSpec
from r1v_export.processing.tokenizer import IMAGE_TOKEN, Tokenizer

Layout = Literal["internvl_chat", "internvl"]
DType = Literal["float32", "float16", "bfloat16"]
_DTYPES: tuple[DType, ...] = get_args(DType)

ARCHITECTURES: dict[str, Layout] = {
    "SkyworkR1VChatModel": "internvl_chat",
    "SkyworkChatModel": "internvl_chat",
    "InternVLChatModel": "internvl_chat",
    "InternVLForConditionalGeneration": "internvl",
}
_MODEL_TYPES = {
    "skywork_chat": "SkyworkR1VChatModel",
    "internvl_chat": "InternVLChatModel",
    "internvl": "InternVLForConditionalGeneration",
}
_NATIVE_QK_NORM_EPS = 1e-6  # fixed in transformers' InternVLVisionRMSNorm, whatever layer_norm_eps says


class _Parts(NamedTuple):
    """What the layouts spell differently."""

    vision: VisionSpec
    declared_vision_layers: int
    shuffle: int
    ps_version: Literal["v1", "v2"]
    tiling: TilingSpec
    language: Section
    may_tie: bool
    """Whether the token embedding stands in for a head that the files do not hold."""


class Configuration(NamedTuple):
    """What config.json says."""

    spec: ModelSpec
    unused_vision_layers: range
    """ViT blocks that are declared, and may be stored, but that `select_layer` excludes."""
    template_reason: str
    """Why `spec.template` was chosen."""
    unused_keys: tuple[str, ...]
    """Keys that are set in config.json and that nothing here reads, dotted."""


def read_configuration(folder: Path, *, stores_lm_head: bool, stored_dtype: DType) -> Configuration:
    """The model that a checkpoint folder's config.json and tokenizer describe.

    Args:
        folder: holds config.json and the tokenizer's files.
        stores_lm_head: whether the weight files hold a head of their own; embeddings are tied where the
            configuration allows it and they do not.
        stored_dtype: dtype of the weights, for a configuration that does not say.

    Raises:
        CheckpointError: a missing or broken file, an unknown architecture, or a variant that is not supported.
    """
    config = Section(read_json_object(folder / "config.json"), "config.json")
    architecture = _architecture(config)
    layout = ARCHITECTURES[architecture]
    parts = _native_parts(folder, config) if layout == "internvl" else _chat_parts(config)
    language = read_language(parts.language, tied=parts.may_tie and not stores_lm_head)
    _check_grid(parts)
    _check_adapters(config)
    tokenizer = Tokenizer.from_folder(folder)
    template = choose_template(config, tokenizer.added_tokens)
    spec = ModelSpec(
        layout=layout,
        architecture=architecture,
        vision=parts.vision,
        projector=ProjectorSpec(
            shuffle=parts.shuffle,
            ps_version=parts.ps_version,
            in_features=parts.vision.hidden_size * parts.shuffle**2,
            hidden_size=language.hidden_size,
        ),
        language=language,
        tiling=parts.tiling,
        image_token_id=_image_token_id(folder, config, tokenizer, language.vocab_size),
        template=template.name,
        system_message=_system_message(config),
        dtype=_declared_dtype(config, parts.language) or stored_dtype,
    )
    _check_vocabulary(folder, tokenizer, language.vocab_size)
    unused_layers = range(parts.vision.num_layers, parts.declared_vision_layers)
    return Configuration(spec, unused_layers, template.reason, tuple(_unused_keys(config)))


def _architecture(config: Section) -> str:
    declared = config.get("architectures")
    model_type = str(config.get("model_type"))
    name = str(declared[0]) if isinstance(declared, list) and declared else _MODEL_TYPES.get(model_type, model_type)
    if name not in ARCHITECTURES:
        raise CheckpointError(
            "The checkpoint's architecture is not supported.",
            where="config.json: architectures",
            expected=", ".join(ARCHITECTURES),
            found=name,
            fix="use a Skywork-R1V 1 to 3, or an InternVL2.5 or InternVL3 with a Qwen2.5 language model",
        )
    return name


def _chat_parts(config: Section) -> _Parts:
    """The `internvl_chat` layout: OpenGVLab's own and Skywork's repositories."""
    config = Section(config.values, config.path, defaults.CHAT)
    vit = _required(config, defaults.CHAT_VISION, "vision_config")
    llm = _required(config, defaults.QWEN2, "llm_config", "text_config")
    vision = _vision(vit, _blocks_run(config, "select_layer", vit), "qk_normalization", "qkv_bias")
    ps_version = config.choice("ps_version", "v1", "v2")
    if config.flag("pad2square"):
        raise config.wrong("pad2square", "false", True, UNSUPPORTED)
    return _Parts(
        vision=vision,
        declared_vision_layers=vit.layers("num_hidden_layers"),
        shuffle=_shuffle(config),
        ps_version="v1" if ps_version == "v1" else "v2",
        tiling=TilingSpec(
            tile_size=config.square("force_image_size") if config.has("force_image_size") else vision.image_size,
            min_tiles=config.size("min_dynamic_patch"),
            max_tiles=_max_tiles(config, "min_dynamic_patch", "max_dynamic_patch"),
            use_thumbnail=config.flag("use_thumbnail"),
            dynamic=config.flag("dynamic_image_size"),
        ),
        language=llm,
        may_tie=llm.flag("tie_word_embeddings"),
    )


def _native_parts(folder: Path, config: Section) -> _Parts:
    """transformers' own `internvl` layout (the `-hf` repositories)."""
    config = Section(config.values, config.path, defaults.NATIVE)
    vit = _required(config, defaults.NATIVE_VISION, "vision_config")
    llm = _required(config, defaults.QWEN2, "text_config")
    processor = _image_processor(folder)
    config.choice("vision_feature_select_strategy", "default")
    config.choice("projector_hidden_act", "gelu")
    for key in ("use_absolute_position_embeddings", "use_mean_pooling"):
        if not vit.flag(key):
            raise vit.wrong(key, "true", False, UNSUPPORTED)
    vision = _vision(vit, _blocks_run(config, "vision_feature_layer", vit), "use_qk_norm", "attention_bias")
    if vision.qk_norm and vision.norm_eps != _NATIVE_QK_NORM_EPS:
        raise vit.wrong("layer_norm_eps", f"{_NATIVE_QK_NORM_EPS} with use_qk_norm", vision.norm_eps, UNSUPPORTED)
    return _Parts(
        vision=vision,
        declared_vision_layers=vit.layers("num_hidden_layers"),
        shuffle=_shuffle(config),
        ps_version="v2",
        tiling=TilingSpec(
            tile_size=_processor_tile_size(processor) or vision.image_size,
            min_tiles=processor.size("min_patches"),
            max_tiles=_max_tiles(processor, "min_patches", "max_patches"),
            use_thumbnail=True,
            dynamic=True,
        ),
        language=llm,
        may_tie=(llm if llm.has("tie_word_embeddings") else config).flag("tie_word_embeddings"),
    )


def _required(config: Section, class_defaults: dict[str, Any], *keys: str) -> Section:
    section = config.section(*keys, defaults=class_defaults)
    if section is None:
        raise config.wrong(keys[0], "an object", None, "use a vision-language checkpoint; this one has no such part")
    return section


def _image_processor(folder: Path) -> Section:
    """The image processor's settings, from whichever file has them."""
    for name in ("preprocessor_config.json", "processor_config.json"):
        if (folder / name).exists():
            whole = Section(read_json_object(folder / name), name, defaults.NATIVE_PROCESSOR)
            settings = whole.section("image_processor", defaults=defaults.NATIVE_PROCESSOR) or whole
            break
    else:
        settings = Section({}, "preprocessor_config.json", defaults.NATIVE_PROCESSOR)
    for key in ("image_mean", "image_std", "resample"):
        published = defaults.NATIVE_PROCESSOR[key]
        if settings.get(key) != published:
            raise settings.wrong(key, str(published), settings.get(key), UNSUPPORTED)
    return settings


def _processor_tile_size(processor: Section) -> int | None:
    size = processor.section("size")
    if size is None:
        return None
    if size.size("height") != size.size("width"):
        raise processor.wrong("size", "a square", size.values, UNSUPPORTED)
    return size.size("height")


def _vision(vit: Section, num_layers: int, qk_norm_key: str, qkv_bias_key: str) -> VisionSpec:
    vit.choice("hidden_act", "gelu")
    if vit.flag("use_moe"):
        raise vit.wrong("use_moe", "false", True, UNSUPPORTED)
    if vit.size("num_channels") != 3:
        raise vit.wrong("num_channels", "3", vit.get("num_channels"), UNSUPPORTED)
    hidden_size, num_heads = vit.size("hidden_size"), vit.size("num_attention_heads")
    if hidden_size % num_heads:
        raise vit.wrong("num_attention_heads", f"a divisor of hidden_size {hidden_size}", num_heads)
    norm = vit.choice("norm_type", "rms_norm", "layer_norm")
    return VisionSpec(
        hidden_size=hidden_size,
        num_heads=num_heads,
        num_layers=num_layers,
        intermediate_size=vit.size("intermediate_size"),
        patch_size=vit.square("patch_size"),
        image_size=vit.square("image_size"),
        norm="rms_norm" if norm == "rms_norm" else "layer_norm",
        norm_eps=vit.number("layer_norm_eps"),
        qk_norm=vit.flag(qk_norm_key),
        qkv_bias=vit.flag(qkv_bias_key),
    )


def _blocks_run(config: Section, key: str, vit: Section) -> int:
    """How many ViT blocks run to give the hidden state of index `key`, where 0 is what goes into the first block."""
    layers, selected = vit.layers("num_hidden_layers"), config.integer(key)
    blocks = selected if selected >= 0 else layers + 1 + selected
    if not 1 <= blocks <= layers:
        raise config.wrong(key, f"1 to {layers}, or {-layers} to -1", selected)
    return blocks


def _shuffle(config: Section) -> int:
    ratio = config.number("downsample_ratio")
    shuffle = round(1 / max(ratio, 1e-6))  # 1 / 5e-324 is infinite
    if shuffle < 1 or abs(shuffle * ratio - 1) > 1e-6:
        raise config.wrong("downsample_ratio", "1 divided by an integer", ratio)
    return shuffle


def _max_tiles(section: Section, min_key: str, max_key: str) -> int:
    least, most = section.size(min_key), section.size(max_key)
    if most < least:
        raise section.wrong(max_key, f"at least {min_key} {least}", most)
    return most


def _check_grid(parts: _Parts) -> None:
    """Patches fill the tile, and squares of patches fill its grid."""
    step, tile_size = parts.vision.patch_size * parts.shuffle, parts.tiling.tile_size
    if tile_size % step:
        raise CheckpointError(
            "A tile does not divide into patches and pixel-shuffled tokens.",
            where="config.json: force_image_size or image_size, patch_size, downsample_ratio",
            expected=f"a tile side that is a multiple of {step} (patch size x pixel shuffle)",
            found=tile_size,
            fix="check config.json against the one the checkpoint was published with",
        )


def _check_adapters(config: Section) -> None:
    """The published classes put LoRA adapters around the linears where these ranks are not zero."""
    for key in ("use_backbone_lora", "use_llm_lora"):
        rank = config.integer(key) if config.has(key) else 0
        if rank:
            fix = "merge the adapters into the weights with: r1v-export merge-lora MODEL -o FOLDER"
            raise config.wrong(key, "0: no LoRA adapters", rank, fix)


def _system_message(config: Section) -> str | None:
    message = config.get("system_message")
    if message is not None and not isinstance(message, str):
        raise config.wrong("system_message", "a text", message)
    return message


def _check_vocabulary(folder: Path, tokenizer: Tokenizer, vocab_size: int) -> None:
    if tokenizer.vocab_size > vocab_size:
        raise CheckpointError(
            "The tokenizer has tokens that the model has no embedding for.",
            where=folder,
            expected=f"ids below vocab_size {vocab_size}",
            found=f"ids up to {tokenizer.vocab_size - 1}",
            fix="copy config.json and the tokenizer files again; two versions may be mixed",
        )


def _unused_keys(config: Section) -> Iterator[str]:
    parts: dict[str, Part] = {"vision_config": "vision", "llm_config": "language", "text_config": "language"}
    yield from unused_keys("top", config.values)
    for name, part in parts.items():
        section = config.section(name)
        if section is not None:
            yield from (f"{name}.{key}" for key in unused_keys(part, section.values))


def _image_token_id(folder: Path, config: Section, tokenizer: Tokenizer, vocab_size: int) -> int:
    """Id of `<IMG_CONTEXT>`: by the tokenizer, and by config.json where it says (native layout)."""
    key = "image_token_id" if config.has("image_token_id") else "image_token_index"
    declared = config.integer(key) if config.has(key) else None
    found = tokenizer.token_id(IMAGE_TOKEN)
    if found is None:
        raise CheckpointError(
            f"The tokenizer has no {IMAGE_TOKEN} token.",
            where=folder,
            expected=f"{IMAGE_TOKEN} in tokenizer.json, tokenizer_config.json or added_tokens.json",
            found=shorten(sorted(tokenizer.added_tokens)),
            fix="copy the tokenizer files from where the checkpoint came from",
        )
    if declared is not None and declared != found:
        raise config.wrong(key, f"{found}, as in the tokenizer", declared)
    if not 0 <= found < vocab_size:
        raise CheckpointError(
            f"The id of {IMAGE_TOKEN} is outside the vocabulary.",
            where=folder,
            expected=f"an id below vocab_size {vocab_size}",
            found=found,
            fix="copy config.json and the tokenizer files again; two versions may be mixed",
        )
    return found


def _declared_dtype(*sections: Section) -> DType | None:
    """dtype of the weights by the configuration, under the key of transformers 5 or of those before."""
    for section in sections:
        declared = str(section.get("dtype") or section.get("torch_dtype")).removeprefix("torch.")
        for dtype in _DTYPES:
            if declared == dtype:
                return dtype
    return None
