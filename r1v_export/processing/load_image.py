"""Image files become RGB images, under limits that are checked before anything is decoded."""

from __future__ import annotations

import io
from pathlib import Path
from typing import BinaryIO

from PIL import Image, UnidentifiedImageError

from r1v_export.config import ImagePolicy
from r1v_export.errors import InputError
from r1v_export.files import open_regular
from r1v_export.processing.image_policy import to_rgb
from r1v_export.processing.image_size import MAX_PIXELS, require_size, too_large

_SHOWN_BYTES = 16

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
"""What is opened at all: Pillow's other readers are rarely used, and one of them runs PostScript."""

ImageSource = str | Path | bytes | BinaryIO


def load_image(
    source: ImageSource, policy: ImagePolicy = "as_displayed", *, max_pixels: int = MAX_PIXELS
) -> Image.Image:
    """Read an image as the model is given it: the first frame, 8-bit RGB.

    Args:
        source: path, encoded bytes, or a binary file.
        policy: how it becomes RGB, see `processing.image_policy`; a bundle's own is `BaseRunner.image_policy`.
        max_pixels: of the image, at most `MAX_PIXELS`.

    Raises:
        InputError: missing, unreadable, no regular file, not one of `FORMATS`, damaged, empty, over `max_pixels` or
            `MAX_SIDE`, or of samples that the policy has no rule for.
    """
    if not isinstance(source, str | Path):
        file = io.BytesIO(source) if isinstance(source, bytes) else source
        return _decode(file, policy, getattr(source, "name", "image data"), max_pixels)
    try:
        with open_regular(source) as file:
            return _decode(file, policy, source, max_pixels)
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name.
        reason = getattr(error, "strerror", None) or error
        fix = "give the path of an image file"
        raise InputError("The image cannot be read.", where=source, found=reason, fix=fix) from error


def check_size(image: Image.Image, where: object, max_pixels: int = MAX_PIXELS) -> None:
    """Refuse a decoded image that is empty or too large.

    Raises:
        InputError: no pixels, more than `max_pixels`, or a side longer than `MAX_SIDE`.
    """
    require_size(*image.size, where, max_pixels)


def _decode(file: BinaryIO, policy: ImagePolicy, where: object, max_pixels: int) -> Image.Image:
    try:
        with Image.open(file, formats=FORMATS) as image:
            check_size(image, where, max_pixels)
            return to_rgb(image, policy, where)
    except InputError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise too_large(where, error) from error
    except UnidentifiedImageError as error:
        file.seek(0)
        head = file.read(_SHOWN_BYTES)
        raise InputError(
            "The file is not an image of a known format.",
            where=where,
            expected=" ".join(FORMATS),
            found=f"a file that begins with {head!r}" if head else "an empty file",
            fix="name another file, or convert it to PNG first",
        ) from error
    except Exception as error:  # Pillow's decoders answer damaged data with a dozen kinds of exception.
        raise InputError(
            "The image is damaged or cut off.",
            where=where,
            found=error,
            fix="copy or download it again, or open it in an image viewer and save it as PNG",
        ) from error
