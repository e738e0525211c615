"""Options that name images, shared by the commands that read them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import click

from r1v_export.errors import UsageError

if TYPE_CHECKING:
    from PIL import Image

    from r1v_export.config import ImagePolicy

STDIN = "-"
SOURCE = "FILE|-|URL"

allow_url_option = click.option("--allow-url", is_flag=True, help="Fetch images that are http(s) URLs.")
image_option = click.option(
    "--image",
    "images",
    multiple=True,
    metavar=SOURCE,
    help="Image: file, - for stdin, data URL, or http(s) URL with --allow-url; repeatable.",
)


def image_opener(policy: ImagePolicy, allow_url: bool) -> Callable[[str], Image.Image]:
    """What opens an image by its name, as the bundle's policy says."""

    def open_named(source: str) -> Image.Image:
        # Imports what fetches URLs, which a question without an image has no use for.
        from r1v_export.processing.image_source import open_image

        return open_image(source, policy, allow_url=allow_url)

    return open_named


def stdin_is_terminal() -> bool:
    """Whether what is read from standard input is typed."""
    return sys.stdin is not None and sys.stdin.isatty()


def require_readable_stdin(sources: Sequence[str], stdin_is_taken: bool = False) -> None:
    """Refuse options that read standard input more than once, or an image from a keyboard.

    Raises:
        UsageError: more than one thing is to be read from stdin, or an image while stdin is a terminal.
    """
    if sources.count(STDIN) + stdin_is_taken > 1:
        raise UsageError(
            "Standard input can be read once.", where="--image -", fix="give the other images, or the question, by name"
        )
    if STDIN in sources and stdin_is_terminal():
        raise UsageError(
            "An image is not read from a terminal.",
            where="--image -",
            expected="an image on standard input",
            found="a terminal",
            fix="pipe one in, such as with < image.png at the end of the line, or name a file: --image FILE",
        )
