"""ModelSpec: everything the toolchain needs to know of a model, strict, frozen, and read from `config.json` alone.

`config.py` of this folder fills it from each of the published layouts; nothing downstream reads raw configs.
"""

from __future__ import annotations

from typing import Literal

from pydantic import PositiveFloat, PositiveInt

from r1v_export.contract import Sizes
from r1v_export.strict import StrictModel

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
"""Of the channels red, green, blue in [0, 1]: every model of the family normalizes its pixels with these."""


class VisionSpec(StrictModel):
    """An InternViT: pre-norm blocks with LayerScale, no final norm."""

    hidden_size: PositiveInt
    num_heads: PositiveInt
    num_layers: PositiveInt
    """Blocks that run: the checkpoint's blocks cut at `select_layer`."""
    intermediate_size: PositiveInt
    patch_size: PositiveInt
    image_size: PositiveInt
    """Side in pixels that the position embedding was made for."""
    norm: Literal["rms_norm", "layer_norm"]
    norm_eps: PositiveFloat
    qk_norm: bool
    """RMS-normalize Q and K over all heads together, before the split into heads."""
    qkv_bias: bool

    @property
    def head_dim(self) -> int:
        """Size of one attention head."""
        return self.hidden_size // self.num_heads

    @property
    def num_positions(self) -> int:
        """Rows of the position embedding: one class token and the patch grid."""
        return 1 + (self.image_size // self.patch_size) ** 2


class ProjectorSpec(StrictModel):
    """Pixel shuffle followed by LayerNorm, Linear, GELU, Linear (`mlp1`)."""

    shuffle: PositiveInt
    """Side of the square of patches that becomes one token: 1 / downsample_ratio."""
    ps_version: Literal["v1", "v2"]
    in_features: PositiveInt
    hidden_size: PositiveInt
    norm_eps: PositiveFloat = 1e-5


class RopeScaling(StrictModel):
    """How the rotary angles differ from position * rope_theta^(-2i/D); see `reference.rotary`."""

    type: Literal["linear", "dynamic", "yarn"]
    factor: PositiveFloat
    original_max_position_embeddings: PositiveInt | None = None
    """YaRN: context that the model was pretrained for."""
    attention_factor: PositiveFloat = 1.0
    """YaRN: cos and sin are multiplied by it."""
    beta_fast: PositiveFloat = 32.0
    """YaRN: dimensions that turn more often than this over the original context keep their frequency."""
    beta_slow: PositiveFloat = 1.0
    """YaRN: dimensions that turn less often than this have their frequency divided by the factor."""
    truncate: bool = True
    """YaRN: round the bounds of the ramp between the two to whole dimensions."""


class LanguageSpec(StrictModel):
    """A Qwen2 decoder: grouped-query attention with q/k/v biases, RMSNorm, SwiGLU, rotary positions."""

    hidden_size: PositiveInt
    num_layers: PositiveInt
    num_heads: PositiveInt
    num_kv_heads: PositiveInt
    head_dim: PositiveInt
    intermediate_size: PositiveInt
    vocab_size: PositiveInt
    rms_norm_eps: PositiveFloat
    rope_theta: PositiveFloat
    rope_scaling: RopeScaling | None = None
    max_position_embeddings: PositiveInt
    """Longest sequence: config.json's, or what YaRN extends it to."""
    tie_word_embeddings: bool


class TilingSpec(StrictModel):
    """How an image becomes tiles."""

    tile_size: PositiveInt
    min_tiles: PositiveInt
    max_tiles: PositiveInt
    use_thumbnail: bool
    dynamic: bool

    @property
    def max_tiles_per_image(self) -> int:
        """The most tiles that an image becomes, its thumbnail included."""
        cut = self.max_tiles if self.dynamic else 1
        return cut + (self.use_thumbnail and cut > 1)


class ModelSpec(StrictModel):
    """One checkpoint's model."""

    layout: Literal["internvl_chat", "internvl"]
    """Weight naming: `internvl_chat` (also every Skywork-R1V) or transformers' native `internvl`."""
    architecture: str
    """`architectures[0]` of config.json, for people."""
    vision: VisionSpec
    projector: ProjectorSpec
    language: LanguageSpec
    tiling: TilingSpec
    image_token_id: int
    """Id of `<IMG_CONTEXT>`, looked up in the checkpoint's tokenizer."""
    template: str
    """Prompt template name, see `processing.prompt.TEMPLATES`."""
    system_message: str | None = None
    """Default system message of the checkpoint; None for the template's own."""
    dtype: Literal["float32", "float16", "bfloat16"]

    @property
    def tile_patches(self) -> int:
        """Patches along one side of a tile."""
        return self.tiling.tile_size // self.vision.patch_size

    @property
    def tokens_per_tile(self) -> int:
        """Number of image tokens that one tile becomes."""
        return (self.tile_patches // self.projector.shuffle) ** 2

    @property
    def sizes(self) -> Sizes:
        """What the contract takes from the model."""
        return Sizes(
            tile_size=self.tiling.tile_size,
            tokens_per_tile=self.tokens_per_tile,
            vision_features=self.projector.in_features,
            hidden=self.language.hidden_size,
            vocab=self.language.vocab_size,
            layers=self.language.num_layers,
            kv_heads=self.language.num_kv_heads,
            head_dim=self.language.head_dim,
        )
