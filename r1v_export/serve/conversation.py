"""Messages of the OpenAI API become a request of the runner."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from PIL import Image

from r1v_export.errors import InputError
from r1v_export.processing.prompt import IMAGE_PLACEHOLDER, Turn
from r1v_export.runner.prompt_encoder import Request
from r1v_export.serve.protocol import (
    AssistantMessage,
    ContentPart,
    ImagePart,
    Message,
    SystemMessage,
    TextPart,
    UserMessage,
)


def to_request(
    messages: Sequence[Message], load: Callable[[str], Image.Image], think: bool, reasoning_tags: tuple[str, str]
) -> Request:
    """The conversation with its images, each where its message shows it.

    Args:
        load: reads the image of a URL.
        think: let the model reason before it answers.
        reasoning_tags: what the template reads around the reasoning of an earlier answer.

    Raises:
        InputError: an image cannot be used, or a text names `<image>` where its message has images too.
    """
    turns, images = [], []
    for number, message in enumerate(messages):
        if isinstance(message, UserMessage):
            parts = _parts(message.content)
            urls = [part.image_url.url for part in parts if isinstance(part, ImagePart)]
            images += [load(url) for url in urls]
            turns.append(Turn("user", _text(parts, f"messages[{number}]"), images=len(urls)))
        else:
            turns.append(_other_turn(message, reasoning_tags))
    return Request(tuple(turns), tuple(images), think)


def count_images(messages: Sequence[Message]) -> int:
    """Number of images in a conversation."""
    contents = [_parts(message.content) for message in messages if isinstance(message, UserMessage)]
    return sum(isinstance(part, ImagePart) for parts in contents for part in parts)


def _parts(content: str | list[ContentPart]) -> list[ContentPart]:
    return [TextPart(type="text", text=content)] if isinstance(content, str) else content


def _text(parts: Sequence[ContentPart], where: str) -> str:
    """The parts as lines, with a placeholder for each image."""
    texts = [part.text for part in parts if isinstance(part, TextPart)]
    if len(texts) < len(parts) and any(IMAGE_PLACEHOLDER in text for text in texts):
        raise InputError(
            f"A text with {IMAGE_PLACEHOLDER} cannot be distinguished from the place of an image.",
            where=where,
            expected=f"images as parts of type image_url, and no {IMAGE_PLACEHOLDER} in the texts between them",
            fix=f"take {IMAGE_PLACEHOLDER} out of the text",
        )
    return "\n".join(part.text if isinstance(part, TextPart) else IMAGE_PLACEHOLDER for part in parts)


def _other_turn(message: SystemMessage | AssistantMessage, reasoning_tags: tuple[str, str]) -> Turn:
    content = message.content or ""
    text = content if isinstance(content, str) else "\n".join(part.text for part in content)
    if isinstance(message, SystemMessage):
        return Turn("system", text)
    reasoning = message.reasoning_content or message.reasoning
    start, end = reasoning_tags
    return Turn("assistant", text if reasoning is None else f"{start}{reasoning}{end}{text}")
