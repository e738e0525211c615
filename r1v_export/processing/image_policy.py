"""Decoded images become RGB: as a viewer displays them, or as the published code converts them.

`as_displayed` applies the EXIF orientation, composes transparency on white and takes the upper 8 of 16 bits, as
browsers do. `published` is `Image.open(file).convert("RGB")` of the InternVL and Skywork-R1V model cards, bit for bit:
no orientation, and colors under alpha 0 show. Color profiles are applied by neither.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image, ImageFile

from r1v_export.config import ImagePolicy
from r1v_export.errors import InputError

POLICY_KEY = "r1v_export_image_policy"
"""Where `Image.info` of a loaded image names the policy that it was loaded with."""

_ORIENTATION_TAG = 0x0112
_TIFF_BITS_PER_SAMPLE, _TIFF_PHOTOMETRIC = 258, 262

# EXIF 2.32, tag Orientation: what brings the stored rows and columns upright.
_TRANSPOSE_OF_ORIENTATION = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# Gray samples of fewer than 8 bits are scaled up on decoding, but the transparent value next to them is not.
_KEY_SCALE_OF_RAW_MODE = {"L;2": 85, "L;4": 17}

_SIXTEEN_BIT_MODES = ("I;16", "I;16L", "I;16B", "I;16N")
_DEEP_MODES = (*_SIXTEEN_BIT_MODES, "I", "F")
_MODES = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV")
_ALPHA_MODES = ("LA", "La", "PA", "RGBA", "RGBa")


def to_rgb(image: Image.Image, policy: ImagePolicy, where: object) -> Image.Image:
    """The first frame of an opened image as 8-bit RGB, without metadata but the policy.

    Raises:
        InputError: samples without a rule: float, 32 bits, Lab; with `published`, also 16-bit gray.
    """
    rgb = _displayed(image, where) if policy == "as_displayed" else _published(image, where)
    rgb.info = {POLICY_KEY: policy}
    return rgb


def _published(image: Image.Image, where: object) -> Image.Image:
    if image.mode in _DEEP_MODES:
        raise _unsupported(image, where, "convert it to an 8-bit PNG or JPEG first, or build as_displayed")
    if image.mode not in _MODES:
        raise _unsupported(image, where)
    return image.convert("RGB")


def _displayed(image: Image.Image, where: object) -> Image.Image:
    if getattr(image, "default_image", False) and image.tell() == 0:
        image.seek(1)  # The first image of such an APNG is for viewers that cannot animate, and no frame.
    raw_mode, covered = _raw_mode(image), _covered(image)
    image.load()
    if image.mode in _DEEP_MODES:
        rgb = _from_sixteen_bits(image, where)
    elif image.mode in _MODES:
        rgb = _on_white(image, raw_mode, covered, where)
    else:
        raise _unsupported(image, where)
    transpose = _TRANSPOSE_OF_ORIENTATION.get(_orientation(image))
    return rgb if transpose is None else rgb.transpose(transpose)


def _raw_mode(image: Image.Image) -> str:
    """Layout of the samples in the file, in Pillow's words; empty for an image that is decoded already."""
    tiles = image.tile if isinstance(image, ImageFile.ImageFile) else []
    arguments: Any = tiles[0][3] if tiles else ""
    first = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return first if isinstance(first, str) else ""


def _covered(image: Image.Image) -> tuple[int, int, int, int] | None:
    """The part of a GIF that its first frame covers; a viewer shows its background around it. None: all of it.

    Later frames are drawn by Pillow over those before them.
    """
    if image.format != "GIF" or not isinstance(image, ImageFile.ImageFile) or not image.tile or image.tell() > 0:
        return None
    box = image.tile[0][1]
    return None if box is None or tuple(box) == (0, 0, *image.size) else box


def _on_white(
    image: Image.Image, raw_mode: str, covered: tuple[int, int, int, int] | None, where: object
) -> Image.Image:
    key = image.info.get("transparency")
    if image.mode not in _ALPHA_MODES and key is None and covered is None:
        return image.convert("RGB")
    if isinstance(key, tuple) and raw_mode.endswith("16B"):
        raise _unsupported(image, where, "16-bit color with a transparent color: convert it to an 8-bit PNG first")
    if isinstance(key, int) and raw_mode in _KEY_SCALE_OF_RAW_MODE:
        image = image.copy()
        image.info["transparency"] = key * _KEY_SCALE_OF_RAW_MODE[raw_mode]
    rgba = image.convert("LA" if image.mode == "La" else "RGBA").convert("RGBA")
    if covered is not None:
        visible = rgba.crop(covered)
        rgba = Image.new("RGBA", image.size)
        rgba.paste(visible, covered)
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")


def _from_sixteen_bits(image: Image.Image, where: object) -> Image.Image:
    """16-bit gray -> RGB: the upper byte of each sample, as Pillow takes of 16-bit color and browsers of both.

    Samples of 32 bits and floats have no range that is black to white: they are refused.
    """
    values = np.asarray(image)
    # Pillow before 11.? opens 16-bit PNG as 32-bit integers.
    if image.mode not in _SIXTEEN_BIT_MODES and not (image.mode == "I" and image.format == "PNG"):
        raise _unsupported(image, where)
    tags: Any = getattr(image, "tag_v2", {})
    bits = (tags.get(_TIFF_BITS_PER_SAMPLE) or (16,))[0]
    gray = (values.astype(np.uint32) >> (bits - 8)).astype(np.uint8)
    if tags.get(_TIFF_PHOTOMETRIC) == 0:  # white is zero
        gray = 255 - gray
    key = image.info.get("transparency")
    if key is not None:
        gray = np.where(values == key, np.uint8(255), gray)
    return Image.fromarray(gray).convert("RGB")


def _orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 where there is none or the metadata is damaged: viewers then show the image as stored."""
    try:
        value = image.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:  # Pillow's EXIF reader answers damaged data with a dozen kinds of exception.
        return 1
    return value if isinstance(value, int) else 1


def _unsupported(
    image: Image.Image, where: object, fix: str = "convert it to an 8-bit PNG or JPEG first"
) -> InputError:
    return InputError(
        "The image's samples are of an unsupported kind.",
        where=where,
        expected="8 or 16 bits per sample: gray, RGB, CMYK or a palette, with or without transparency",
        found=f"Pillow mode {image.mode}",
        fix=fix,
    )
