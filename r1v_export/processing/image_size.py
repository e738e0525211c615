"""Which sizes of images are taken."""

from __future__ import annotations

from r1v_export.errors import InputError

MAX_PIXELS = 80_000_000
"""Largest image that is decoded, in pixels (about 240 MB as RGB); below the size at which Pillow itself warns."""

MAX_SIDE = 65_535
"""Longest side in pixels, which is JPEG's own limit: resizing a longer, narrow image takes gigabytes."""


def require_size(width: int, height: int, where: object, max_pixels: int = MAX_PIXELS) -> None:
    """Refuse an image size in pixels that is zero or too large.

    Raises:
        InputError: no pixels, more than `max_pixels`, or a side longer than `MAX_SIDE`.
    """
    if width < 1 or height < 1:
        fix = "name another image"
        raise InputError("The image has no pixels.", where=where, found=f"{width} x {height}", fix=fix)
    if width * height > max_pixels or max(width, height) > MAX_SIDE:
        raise too_large(where, f"{width} x {height} pixels", max_pixels)


def too_large(where: object, found: object, max_pixels: int = MAX_PIXELS) -> InputError:
    """Return the error for an image that is."""
    limit = f"at most {max_pixels / 1_000_000:g} megapixels and {MAX_SIDE} pixels on a side"
    return InputError("The image is too large.", where=where, expected=limit, found=found, fix="scale it down first")
