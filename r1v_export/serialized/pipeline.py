"""`pipeline.json`: from images and a conversation to the graphs' inputs, and from tokens back to an answer, as data.

A runtime that follows it knows no model family: every text, id and size that differs between families stands here.
`processing.pipeline_document` fills it; docs/bundle.md says how to follow it.
"""

from __future__ import annotations

from typing import Literal

from pydantic import JsonValue, NonNegativeInt, PositiveInt

from r1v_export.config import ImagePolicy
from r1v_export.model_spec import TilingSpec
from r1v_export.serialized.document import Document, Strict

PIPELINE_FILE = "pipeline.json"


class AddedTokenDocument(Strict):
    """A token that text never becomes: only the prompt's pieces and the model make it."""

    token: str
    id: NonNegativeInt
    hidden: bool
    """Omitted from decoded text."""


class TokenizerDocument(Strict):
    """How text becomes ids, and ids text.

    Text is tokenized by the definition's byte-level BPE without its added tokens: they are taken out of its vocabulary
    and its list of added tokens, and its truncation, padding and post-processor are off.
    """

    definition: str
    """The file in the bundle, in the format of the `tokenizers` library."""
    added_tokens: tuple[AddedTokenDocument, ...]


class TextPiece(Strict):
    """Text, to be tokenized together with the text next to it."""

    text: str


class TokenPiece(Strict):
    """One token, by its id; `token` is its name."""

    token: str
    id: NonNegativeInt


Pieces = tuple[TextPiece | TokenPiece, ...]


class Frame(Strict):
    """What stands before and after the text of a turn."""

    before: Pieces
    after: Pieces


class PastAnswer(Strict):
    """What of an earlier answer of the assistant stays in the prompt."""

    starts_after: str
    """All up to the last of these goes, and it too: the reasoning. Nothing goes where this is empty."""
    strip_leading: str
    """Then these characters go from the front."""


class ImageTokens(Strict):
    """What stands in a user's turn for an image: `start`, `context` so often as its tiles have tokens, `end`."""

    placeholder: str
    """In the text of a turn with images, each stands for the next one. Their number is that of the images, or 0. In a
    turn without images it is text as any other."""
    default_position: str
    """Put before a user's text, once for each image, where the text has no placeholder."""
    start: TokenPiece
    context: TokenPiece
    """The token whose embedding the embed graph replaces."""
    end: TokenPiece
    tokens_per_tile: PositiveInt


class PromptDocument(Strict):
    """How a conversation is written: `begin`, the turns in their frames, the assistant's `before`, and `thinking` where
    the model is to think. Text pieces that touch each other are tokenized as one text.

    Turns are an optional system turn, then user and assistant in alternation, a user last.
    """

    begin: Pieces
    system: Frame
    user: Frame
    assistant: Frame
    default_system: str
    """The system turn of a conversation that has none. An empty system turn is omitted with its frame."""
    thinking: Pieces
    """Empty where the family does not think."""
    past_answer: PastAnswer
    images: ImageTokens
    grounding_tokens: tuple[TokenPiece, ...]
    """With grounding, which is off unless the caller asks for it: where their names stand in the text of a turn, they
    are these tokens (what remains of the text around them is text pieces), and decoded text shows them, `hidden` or
    not. Without it their names are text as any other. Empty where the tokenizer has none."""


class StopToken(Strict):
    """A token that ends an answer and is no text."""

    id: NonNegativeInt
    token: str | None
    """Its name, where it is an added token."""


class ReasoningTags(Strict):
    """The texts that enclose reasoning. They are searched for in decoded text: some tokenizers have no token for them.

    A prompt that ends in `thinking` has opened the reasoning already. White space around reasoning and answer is
    dropped.
    """

    start: str
    end: str

    @property
    def pair(self) -> tuple[str, str]:
        """Start and end tag."""
        return self.start, self.end


class Grid(Strict):
    """Tiles in a row and in a column."""

    cols: PositiveInt
    rows: PositiveInt


class TilingDocument(Strict):
    """How an image becomes tiles.

    Of `grids`, in their order, the first whose cols / rows is nearest to width / height is taken; a later one that is
    exactly as near replaces it where width x height > 0.5 x tile_size^2 x cols x rows. The image is resized to the grid
    and cut row by row; where that gives more than one tile and `thumbnail` is set, the image resized to one tile
    follows. Pixels are RGB, and become (value / 255 - mean) / std in float32, by channel.
    """

    tile_size: PositiveInt
    dynamic: bool
    min_tiles: PositiveInt
    max_tiles: PositiveInt
    """Of the grids; where tiling is dynamic."""
    thumbnail: bool
    max_tiles_per_image: PositiveInt
    """The thumbnail included."""
    grids: tuple[Grid, ...]
    resize: Literal["bicubic"] = "bicubic"
    """As Pillow (below 13) computes it: with antialiasing, horizontally first, rounded to 8 bits in between.

    An image that becomes lower and is over 100 times as high as wide is resized vertically first.
    """
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    max_pixels: PositiveInt
    """Of an image; larger ones are refused."""
    max_side: PositiveInt
    """Of an image, in pixels; so are longer ones."""

    @property
    def spec(self) -> TilingSpec:
        """Return the tiling settings as a TilingSpec."""
        return TilingSpec(
            tile_size=self.tile_size,
            min_tiles=self.min_tiles,
            max_tiles=self.max_tiles,
            use_thumbnail=self.thumbnail,
            dynamic=self.dynamic,
        )


class PositionRule(Strict):
    """The n-th token of a sequence has position `first` + n, image tokens included."""

    rule: Literal["sequential"] = "sequential"
    first: Literal[0] = 0
    max_positions: PositiveInt
    """Tokens of a prompt and its answer, at most."""


class DefaultSampling(Strict):
    """What the checkpoint recommends, as transformers' `generate` applies it, in this order: repetition penalty,
    temperature, top-k, top-p."""

    temperature: float
    """Divides the logits; 0 takes the likeliest token, and top-p and top-k do nothing."""
    top_p: float
    """Of the smallest set of likeliest tokens with this much probability; 1 is off."""
    top_k: int
    """Of this many likeliest tokens; 0 is off."""
    repetition_penalty: float
    """Divides positive and multiplies negative logits of tokens that are in the prompt or the answer."""
    max_new_tokens: PositiveInt


class EngineDocument(Strict):
    """What of the bundle one target runs, and how it is to be opened. Paths are relative to `engines/<target>`."""

    files: dict[str, str]
    """What it is -> file or folder."""
    options: dict[str, JsonValue]
    """The target's own, see docs/bundle.md."""


class PipelineDocument(Document):
    """`pipeline.json`."""

    schema_version: Literal[1] = 1
    tokenizer: TokenizerDocument
    prompt: PromptDocument
    stop_tokens: tuple[StopToken, ...]
    reasoning: ReasoningTags
    tiling: TilingDocument
    image_policy: ImagePolicy
    """How a decoded image becomes RGB. "as_displayed": EXIF orientation applied, transparency on white, the upper 8 of
    16 bits. "published": orientation ignored, transparency dropped, as Pillow's `convert("RGB")` does."""
    positions: PositionRule
    default_sampling: DefaultSampling | None
    """How tokens are chosen where the caller does not say; null where generation_config.json has a value out of its
    range, and the caller has to say it."""
    generation_config: dict[str, JsonValue]
    """Content of the checkpoint's generation_config.json, from which `default_sampling` and `stop_tokens` come."""
    engines: dict[str, EngineDocument]
    """Target -> its engine."""

    @property
    def stop_ids(self) -> frozenset[int]:
        """Token ids that end an answer."""
        return frozenset(token.id for token in self.stop_tokens)

    @property
    def tokens_per_tile(self) -> int:
        """Number of image tokens that one tile becomes."""
        return self.prompt.images.tokens_per_tile

    @property
    def image_token_id(self) -> int:
        """Id of the token that stands for one row of image embeddings."""
        return self.prompt.images.context.id
