"""Conversations become token ids, with room for the image embeddings.

The templates below are ours, written from the published ones: a chat template that comes with a checkpoint is never
executed. Only a template and the images make special tokens; text, whoever wrote it, is only ever text.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from r1v_export.count import Count
from r1v_export.errors import CheckpointError, InputError
from r1v_export.model_spec import ModelSpec
from r1v_export.processing.tokenizer import IMAGE_TOKEN, Tokenizer, eos_token_ids

IMAGE_PLACEHOLDER = "<image>"
IMAGE_START, IMAGE_CONTEXT, IMAGE_END = "<img>", IMAGE_TOKEN, "</img>"
REASONING_START, REASONING_END = "<think>", "</think>"
MAX_BYTES_PER_TOKEN = 16
"""Bytes of text for each token of a context that are tokenized at all. Text has 3 to 5 bytes to a token; only long runs
of one character have more than this."""


@dataclass(frozen=True)
class Template:
    """How a family version writes a conversation. `special_tokens` within the other fields stand for single ids."""

    name: str
    special_tokens: tuple[str, ...]
    system: tuple[str, str]
    """What stands before and after the text; so do the next two."""
    user: tuple[str, str]
    assistant: tuple[str, str]
    stop_tokens: tuple[str, ...]
    """End of an answer: the first must exist, the others count where the tokenizer has them."""
    begin: str = ""
    default_system: str = ""
    thinking: str = ""
    """Opens the reasoning, at the end of the prompt. `<think>` is plain text where the tokenizer has no such token."""
    keep_reasoning: bool = False
    """Past answers stay as they were, reasoning included; otherwise everything up to the last `</think>` is omitted."""
    strip_answer: bool = False
    """Past answers lose the line breaks in front, which separated them from their reasoning."""
    image_tokens: tuple[str, str, str] = (IMAGE_START, IMAGE_CONTEXT, IMAGE_END)
    """Before an image, in the place of each row of its embeddings, after it."""
    reasoning_tags: tuple[str, str] = (REASONING_START, REASONING_END)
    """What reasoning stands between."""

    def is_optional(self, token: str) -> bool:
        """Whether it is text for a tokenizer that has no such token."""
        return token == self.reasoning_tags[0]


_CHATML = Template(
    name="chatml",
    special_tokens=("<|im_start|>", "<|im_end|>"),
    system=("<|im_start|>system\n", "<|im_end|>\n"),
    user=("<|im_start|>user\n", "<|im_end|>\n"),
    assistant=("<|im_start|>assistant\n", "<|im_end|>\n"),
    stop_tokens=("<|im_end|>",),
)

_R1V1 = Template(
    name="r1v1",
    special_tokens=("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>"),
    begin="<｜begin▁of▁sentence｜>",
    system=("", ""),
    user=("<｜User｜>\n", ""),
    assistant=("<｜Assistant｜>", "<｜end▁of▁sentence｜>"),
    stop_tokens=("<｜end▁of▁sentence｜>", "<|endoftext|>"),
    thinking="<think>\n",
)

# R1V2's own template was not seen; this is QwQ-32B's, its language model.
_R1V2 = replace(_CHATML, name="r1v2", thinking="<think>\n", strip_answer=True)

_R1V3 = replace(_CHATML, name="r1v3", thinking="<think>\n", strip_answer=True)

_INTERNVL2_5 = replace(
    _CHATML,
    name="internvl2_5",
    keep_reasoning=True,
    default_system="你是书生·万象，英文名是InternVL，是由上海人工智能实验室、清华大学及多家合作单位联合开发的多模态大语言模型。",
)

TEMPLATES: Mapping[str, Template] = {template.name: template for template in (_R1V1, _R1V2, _R1V3, _INTERNVL2_5)}
"""Prompt templates by the names that `ModelSpec.template` takes."""


def template_of(spec: ModelSpec) -> Template:
    """A checkpoint's template, with the checkpoint's own system message where it has one.

    Raises:
        CheckpointError: a model description, as of a bundle, names a template that there is not.
    """
    template = TEMPLATES.get(spec.template)
    if template is None:
        raise CheckpointError(
            "The model description names an unknown prompt template.",
            where="model.json: template",
            expected=" or ".join(TEMPLATES),
            found=spec.template,
            fix="fetch the bundle again, or build it again with this version",
        )
    return template if spec.system_message is None else replace(template, default_system=spec.system_message)


@dataclass(frozen=True)
class Turn:
    """One message of a conversation.

    Attributes:
        role: the system may speak first; then user and assistant alternate, and a user speaks last.
        text: the message. A user's images stand where the text says `<image>`, and before the text, one to a
            line, where it never does. Without images `<image>` is text as any other.
        images: how many images a user shows.
    """

    role: Literal["system", "user", "assistant"]
    text: str
    images: int = 0


def encode(
    tokenizer: Tokenizer,
    template: Template,
    turns: Sequence[Turn],
    tiles_per_image: Sequence[int],
    tokens_per_tile: int,
    *,
    think: bool = True,
    max_length: int | None = None,
) -> list[int]:
    """Token ids of a conversation, up to where the assistant continues.

    A system turn replaces the template's own system message; an empty one removes it. Reasoning of past answers is
    omitted if the published template omits it, as those of R1V do and InternVL's does not. Grounding tokens in messages
    become special tokens if the tokenizer allows it (`Tokenizer.with_grounding`); no other text does.

    Args:
        tiles_per_image: tiles of each image, in the order of the turns.
        tokens_per_tile: `<IMG_CONTEXT>` tokens that each tile takes.
        think: open reasoning, if the template has them.
        max_length: the model's `max_position_embeddings`. Text of more than `MAX_BYTES_PER_TOKEN` times as many
            bytes is refused before it is tokenized, which takes some 230 bytes of memory for each of its own.

    Raises:
        InputError: turns out of order or empty, `<image>` placeholders that do not match the images, more than
            `max_length` tokens.
        CheckpointError: the tokenizer lacks a token of the template.
    """
    _check_turns(turns, tiles_per_image)
    if max_length is not None:
        require_tokenizable(turns, sum(tiles_per_image) * tokens_per_tile, max_length)
    pieces = _render(template, turns, tiles_per_image, tokens_per_tile, think, tokenizer.grounding_tokens)
    ids = _to_ids(tokenizer, template, pieces)
    if max_length is not None and len(ids) > max_length:
        raise InputError(
            "The prompt is longer than the model's context.",
            where=f"{Count(sum(tiles_per_image), 'image tile')}, {Count(tokens_per_tile, 'token')} each, and the text",
            expected=f"at most {Count(max_length, 'token')}",
            found=str(Count(len(ids), "token")),
            fix="use fewer or smaller images, or less text",
        )
    return ids


def require_tokenizable(turns: Sequence[Turn], image_tokens: int, max_length: int) -> None:
    """Refuse what cannot fit into the context before any work is spent on it.

    Raises:
        InputError: more image tokens than `max_length`, or more than `MAX_BYTES_PER_TOKEN` bytes of text for each.
    """
    limit_bytes = MAX_BYTES_PER_TOKEN * max_length
    text_bytes = sum(len(turn.text.encode("utf-8", "replace")) for turn in turns)
    if image_tokens > max_length:
        found = f"{Count(image_tokens, 'token')} of images alone"
    elif text_bytes > limit_bytes:
        found = f"{Count(text_bytes, 'byte')} of text"
    else:
        return
    raise InputError(
        "The prompt is longer than the model's context.",
        where="images and text",
        expected=f"at most {Count(max_length, 'token')}, of at most {Count(limit_bytes, 'byte')} of text",
        found=found,
        fix="use fewer or smaller images, or less text",
    )


def stop_ids(tokenizer: Tokenizer, template: Template, generation_config: Mapping[str, Any]) -> frozenset[int]:
    """Ids that end an answer: the template's stop tokens and the `eos_token_id` of generation_config.json.

    Raises:
        CheckpointError: the tokenizer lacks the template's stop token, or `eos_token_id` is no id and no list of ids.
    """
    required, *optional = template.stop_tokens
    configured = eos_token_ids(generation_config)
    found = (tokenizer.token_id(token) for token in optional)
    return frozenset({tokenizer.special_id(required), *configured, *(id_ for id_ in found if id_ is not None)})


@dataclass(frozen=True)
class SpecialToken:
    """`count` times the id of one added token. Made from templates and images, never from the text of a message."""

    token: str
    count: int = 1


_Piece = str | SpecialToken


def _check_turns(turns: Sequence[Turn], tiles_per_image: Sequence[int]) -> None:
    roles = [turn.role for turn in turns]
    dialogue = roles[1:] if roles[:1] == ["system"] else roles
    alternating = ["user", "assistant"] * (len(dialogue) // 2) + ["user"]
    if dialogue != alternating:
        raise InputError(
            "The turns of the conversation are out of order.",
            expected="an optional system turn, then user and assistant in alternation, a user last",
            found=", ".join(roles) or "no turns",
        )
    for number, turn in enumerate(turns, start=1):
        if turn.role == "user" and not turn.text.strip() and not turn.images:
            raise InputError("The user neither shows nor asks anything.", where=f"turn {number}", fix="ask a question")
        if turn.role != "user" and turn.images:
            raise InputError("Only a user can show images.", where=f"turn {number}", found=f"role {turn.role}")
    shown = sum(turn.images for turn in turns)
    if shown != len(tiles_per_image):
        raise InputError(
            "The images do not match the turns.", expected=str(Count(shown, "image")), found=f"{len(tiles_per_image)}"
        )


def _render(
    template: Template,
    turns: Sequence[Turn],
    tiles_per_image: Sequence[int],
    tokens_per_tile: int,
    think: bool,
    grounding_tokens: Collection[str],
) -> Iterator[_Piece]:
    """The conversation as text and special tokens, in order."""

    def frame(text: str) -> Iterator[_Piece]:
        return split_special(text, template)

    def literal(pieces: Iterable[_Piece]) -> Iterator[_Piece]:
        for piece in pieces:
            yield from _split(piece, grounding_tokens) if isinstance(piece, str) else (piece,)

    image_lengths = iter([tiles * tokens_per_tile for tiles in tiles_per_image])
    if turns[0].role != "system":
        turns = [Turn("system", template.default_system), *turns]
    yield from frame(template.begin)
    for turn in turns:
        if turn.role == "system" and not turn.text:
            continue
        before, after = getattr(template, turn.role)
        yield from frame(before)
        if turn.role == "user":
            yield from literal(_user_pieces(turn, image_lengths, template))
        else:
            yield from literal([_past_answer(turn.text, template) if turn.role == "assistant" else turn.text])
        yield from frame(after)
    yield from frame(template.assistant[0] + (template.thinking if think else ""))


def split_special(text: str, template: Template) -> Iterator[str | SpecialToken]:
    """Cut a template's own text at its special tokens; the texts between them may be empty."""
    return _split(text, (*template.special_tokens, template.reasoning_tags[0]))


def _split(text: str, tokens: Collection[str]) -> Iterator[str | SpecialToken]:
    if not tokens:
        yield text
        return
    pattern = "|".join(re.escape(token) for token in tokens)
    for index, part in enumerate(re.split(f"({pattern})", text)):
        yield SpecialToken(part) if index % 2 else part


def _user_pieces(turn: Turn, image_lengths: Iterator[int], template: Template) -> Iterator[_Piece]:
    if not turn.images:
        yield turn.text
        return
    placeholders = turn.text.count(IMAGE_PLACEHOLDER)
    if placeholders not in (0, turn.images):
        raise InputError(
            "The text's image placeholders do not match the images.",
            where=IMAGE_PLACEHOLDER,
            expected=f"{Count(turn.images, 'placeholder')}, or none",
            found=placeholders,
            fix="write one <image> for each image, or omit them: the images then come first",
        )
    text = turn.text if placeholders else f"{IMAGE_PLACEHOLDER}\n" * turn.images + turn.text
    first, *rest = text.split(IMAGE_PLACEHOLDER)
    start, context, end = template.image_tokens
    yield first
    for part in rest:
        yield from (SpecialToken(start), SpecialToken(context, next(image_lengths)), SpecialToken(end), part)


def _past_answer(text: str, template: Template) -> str:
    if template.keep_reasoning:
        return text
    answer = text.rsplit(template.reasoning_tags[1], maxsplit=1)[-1]
    return answer.lstrip("\n") if template.strip_answer else answer


def _to_ids(tokenizer: Tokenizer, template: Template, pieces: Iterable[_Piece]) -> list[int]:
    """Tokenize each stretch of text between special tokens as one, as a tokenizer does with a rendered prompt."""
    ids: list[int] = []
    text = ""
    for piece in pieces:
        if isinstance(piece, str):
            text += piece
        elif template.is_optional(piece.token) and tokenizer.token_id(piece.token) is None:
            text += piece.token
        else:
            ids += tokenizer.encode_text(text)
            ids += [tokenizer.special_id(piece.token)] * piece.count
            text = ""
    return ids + tokenizer.encode_text(text)
