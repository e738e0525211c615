"""What tokenizer, prompt and preprocessing do for one checkpoint, as `pipeline.json`, and the way back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

from r1v_export.config import ImagePolicy
from r1v_export.errors import BundleError
from r1v_export.model_spec import IMAGENET_MEAN, IMAGENET_STD, ModelSpec, TilingSpec
from r1v_export.processing.generation_config import default_sampling
from r1v_export.processing.image_size import MAX_PIXELS, MAX_SIDE
from r1v_export.processing.prompt import IMAGE_PLACEHOLDER, Template, split_special, stop_ids, template_of
from r1v_export.processing.tiling import grids
from r1v_export.processing.tokenizer import GROUNDING_TOKENS, Tokenizer, eos_token_ids
from r1v_export.quoting import shorten_text
from r1v_export.serialized.document import read_document
from r1v_export.serialized.pipeline import (
    PIPELINE_FILE,
    AddedTokenDocument,
    DefaultSampling,
    EngineDocument,
    Frame,
    Grid,
    ImageTokens,
    PastAnswer,
    Pieces,
    PipelineDocument,
    PositionRule,
    PromptDocument,
    ReasoningTags,
    StopToken,
    TextPiece,
    TilingDocument,
    TokenizerDocument,
    TokenPiece,
)

TOKENIZER_FILE = "tokenizer.json"


def describe_pipeline(
    spec: ModelSpec,
    tokenizer: Tokenizer,
    generation_config: Mapping[str, Any],
    engines: Mapping[str, EngineDocument] | None = None,
    image_policy: ImagePolicy = "as_displayed",
) -> PipelineDocument:
    """The document of a checkpoint.

    Args:
        generation_config: content of its generation_config.json.
        engines: of the bundle; none for a checkpoint that is run directly.
        image_policy: how images become RGB.

    Raises:
        CheckpointError: the tokenizer lacks a token of the template.
    """
    template = template_of(spec)
    start, end = template.reasoning_tags
    return PipelineDocument(
        tokenizer=_describe_tokenizer(tokenizer),
        prompt=_describe_prompt(template, tokenizer, spec.tokens_per_tile),
        stop_tokens=_describe_stop_tokens(stop_ids(tokenizer, template, generation_config), tokenizer),
        reasoning=ReasoningTags(start=start, end=end),
        tiling=_describe_tiling(spec.tiling),
        image_policy=image_policy,
        positions=PositionRule(max_positions=spec.language.max_position_embeddings),
        default_sampling=_default_sampling(generation_config),
        generation_config=dict(generation_config),
        engines=dict(engines or {}),
    )


def open_files(folder: Path, keep: bool = False) -> tuple[Tokenizer, PipelineDocument]:
    """Tokenizer and pipeline of a bundle, which need not be finished.

    Args:
        keep: as of `Tokenizer.from_folder`; for a finished bundle.

    Raises:
        BundleError: `pipeline.json` is missing, malformed, or does not go with the tokenizer.
        CheckpointError: the tokenizer's files are missing or damaged.
    """
    pipeline = read_document(PipelineDocument, folder / PIPELINE_FILE)
    tokenizer = Tokenizer.from_folder(folder, keep)
    check_pipeline(pipeline, tokenizer, folder / PIPELINE_FILE)
    return tokenizer, pipeline


def document_template(document: PipelineDocument) -> Template:
    """The template that a document holds."""
    prompt = document.prompt
    frames = (prompt.system, prompt.user, prompt.assistant)
    images = prompt.images
    return Template(
        name="pipeline.json",
        special_tokens=tuple(piece.token for piece in _token_pieces(prompt)),
        system=_texts(frames[0]),
        user=_texts(frames[1]),
        assistant=_texts(frames[2]),
        stop_tokens=tuple(stop.token for stop in document.stop_tokens if stop.token is not None),
        begin=_text(prompt.begin),
        default_system=prompt.default_system,
        thinking=_text(prompt.thinking),
        keep_reasoning=not prompt.past_answer.starts_after,
        strip_answer=bool(prompt.past_answer.strip_leading),
        image_tokens=(images.start.token, images.context.token, images.end.token),
        reasoning_tags=document.reasoning.pair,
    )


def check_pipeline(document: PipelineDocument, tokenizer: Tokenizer, where: object) -> None:
    """Compare a bundle's document with its tokenizer and with what this version can do.

    Raises:
        BundleError: an id is not the tokenizer's, or a rule is not followed by this version.
    """
    prompt = document.prompt
    images = (prompt.images.start, prompt.images.context, prompt.images.end)
    differences: list[tuple[str, object, object]] = [
        (f"id of {piece.token}", tokenizer.token_id(piece.token), piece.id)
        for piece in chain(_token_pieces(prompt), images)
        if tokenizer.token_id(piece.token) != piece.id
    ]
    pairs = (
        ("tokenizer", _describe_tokenizer(tokenizer), document.tokenizer),
        ("tiling", _describe_tiling(document.tiling.spec), document.tiling),
        ("stop_tokens", _describe_stop_tokens(_implied_stop_ids(document, tokenizer), tokenizer), document.stop_tokens),
        ("default_sampling", _default_sampling(document.generation_config), document.default_sampling),
        ("prompt", _describe_prompt(document_template(document), tokenizer, document.tokens_per_tile), prompt),
    )
    differences += [(name, expected, found) for name, expected, found in pairs if expected != found]
    if differences:
        name, expected, found = differences[0]
        raise BundleError(
            "pipeline.json describes behavior that this version does not implement for this bundle's tokenizer.",
            where=f"{where}: {name}",
            expected=shorten_text(str(expected)),
            found=shorten_text(str(found)),
            fix="run r1v-export verify on the bundle; if it passes, build the bundle again with this version",
        )


def _describe_tokenizer(tokenizer: Tokenizer) -> TokenizerDocument:
    added = sorted(tokenizer.added_tokens.items(), key=lambda item: item[1].id)
    return TokenizerDocument(
        definition=TOKENIZER_FILE,
        added_tokens=tuple(
            AddedTokenDocument(token=name, id=token.id, hidden=tokenizer.hides(name)) for name, token in added
        ),
    )


def _describe_stop_tokens(ids: Iterable[int], tokenizer: Tokenizer) -> tuple[StopToken, ...]:
    names = {token.id: name for name, token in tokenizer.added_tokens.items()}
    return tuple(StopToken(id=id_, token=names.get(id_)) for id_ in sorted(ids))


def _implied_stop_ids(document: PipelineDocument, tokenizer: Tokenizer) -> set[int]:
    """Ids of `eos_token_id`, of the token that ends an answer in a prompt, and of the stop tokens that are named."""
    ending = [piece.token for piece in document.prompt.assistant.after if isinstance(piece, TokenPiece)][:1]
    named = [stop.token for stop in document.stop_tokens if stop.token is not None]
    found = (tokenizer.token_id(token) for token in (*ending, *named))
    return {*eos_token_ids(document.generation_config), *(id_ for id_ in found if id_ is not None)}


def _describe_prompt(template: Template, tokenizer: Tokenizer, tokens_per_tile: int) -> PromptDocument:
    def pieces(text: str) -> Pieces:
        return tuple(_pieces(text, template, tokenizer))

    def frame(texts: tuple[str, str]) -> Frame:
        return Frame(before=pieces(texts[0]), after=pieces(texts[1]))

    start, context, end = (TokenPiece(token=token, id=tokenizer.special_id(token)) for token in template.image_tokens)
    return PromptDocument(
        begin=pieces(template.begin),
        system=frame(template.system),
        user=frame(template.user),
        assistant=frame(template.assistant),
        default_system=template.default_system,
        thinking=pieces(template.thinking),
        past_answer=PastAnswer(
            starts_after="" if template.keep_reasoning else template.reasoning_tags[1],
            strip_leading="\n" if template.strip_answer else "",
        ),
        images=ImageTokens(
            placeholder=IMAGE_PLACEHOLDER,
            default_position=f"{IMAGE_PLACEHOLDER}\n",
            start=start,
            context=context,
            end=end,
            tokens_per_tile=tokens_per_tile,
        ),
        grounding_tokens=tuple(
            TokenPiece(token=name, id=tokenizer.special_id(name))
            for name in GROUNDING_TOKENS
            if name in tokenizer.added_tokens
        ),
    )


def _pieces(text: str, template: Template, tokenizer: Tokenizer) -> Iterator[TextPiece | TokenPiece]:
    """A template's own text, cut at its special tokens; a reasoning tag that is no token stays text."""
    held = ""
    for part in split_special(text, template):
        if isinstance(part, str):
            held += part
        elif template.is_optional(part.token) and tokenizer.token_id(part.token) is None:
            held += part.token
        else:
            if held:
                yield TextPiece(text=held)
            held = ""
            yield TokenPiece(token=part.token, id=tokenizer.special_id(part.token))
    if held:
        yield TextPiece(text=held)


def _describe_tiling(tiling: TilingSpec) -> TilingDocument:
    mean, std = IMAGENET_MEAN, IMAGENET_STD
    return TilingDocument(
        tile_size=tiling.tile_size,
        dynamic=tiling.dynamic,
        min_tiles=tiling.min_tiles,
        max_tiles=tiling.max_tiles,
        thumbnail=tiling.use_thumbnail,
        max_tiles_per_image=tiling.max_tiles_per_image,
        grids=tuple(Grid(cols=grid.cols, rows=grid.rows) for grid in grids(tiling)),
        mean=mean,
        std=std,
        max_pixels=MAX_PIXELS,
        max_side=MAX_SIDE,
    )


def _default_sampling(generation_config: Mapping[str, Any]) -> DefaultSampling | None:
    try:
        sampling = default_sampling(generation_config)
    except BundleError:
        return None
    return DefaultSampling(**{name: getattr(sampling, name) for name in DefaultSampling.model_fields})


def _token_pieces(prompt: PromptDocument) -> Iterator[TokenPiece]:
    frames = (prompt.system, prompt.user, prompt.assistant)
    texts = (prompt.begin, *(pieces for frame in frames for pieces in (frame.before, frame.after)), prompt.thinking)
    return (piece for pieces in texts for piece in pieces if isinstance(piece, TokenPiece))


def _text(pieces: Pieces) -> str:
    return "".join(piece.token if isinstance(piece, TokenPiece) else piece.text for piece in pieces)


def _texts(frame: Frame) -> tuple[str, str]:
    return _text(frame.before), _text(frame.after)
