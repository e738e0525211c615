"""Images become tiles: InternVL's dynamic tiling, bit-exact with the published code on Pillow 10 to 12.

An image is resized, without keeping its aspect ratio, to the grid of square tiles nearest to its shape, cut row by
row, and followed by a thumbnail of the whole. Pillow 13 changed the order of its two resize passes for some shapes, and
with it pixels by up to two levels; the models were trained with the older order, hence `pillow<13` in pyproject.toml.

Source: `dynamic_preprocess` and `build_transform` of the InternVL and Skywork-R1V model cards.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import Image

from r1v_export.checkpoint.spec import TilingSpec
from r1v_export.errors import InputError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

MAX_PIXELS = 80_000_000
"""Largest image that is decoded, in pixels (about 240 MB as RGB); below the size at which Pillow itself warns."""

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
"""What is opened at all: Pillow's other readers are rarely used, and one of them runs PostScript."""

# Grey with 16 or 32 bits: Pillow clips it to 255 on conversion, and the image comes out white. (Of 16-bit colour it
# keeps the upper bytes, which is right.)
_DEEP_MODES = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")

ImageSource = str | Path | bytes | BinaryIO


class TileGrid(NamedTuple):
    """Tiles in a row and in a column."""

    cols: int
    rows: int


def load_image(source: ImageSource) -> Image.Image:
    """Read an image as the model is given it: first frame, RGB, EXIF orientation not applied, alpha dropped.

    Args:
        source: path, encoded bytes, or a binary file.

    Raises:
        InputError: missing, unreadable, not one of `FORMATS`, damaged, empty, over `MAX_PIXELS`, or of deep grey.
    """
    if not isinstance(source, str | Path):
        file = io.BytesIO(source) if isinstance(source, bytes) else source
        return _decode(file, getattr(source, "name", "image data"))
    try:
        with Path(source).open("rb") as file:
            return _decode(file, source)
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name.
        reason = getattr(error, "strerror", None) or error
        fix = "give the path of an image file"
        raise InputError("The image cannot be read.", where=source, found=reason, fix=fix) from error


def candidate_grids(min_tiles: int, max_tiles: int) -> tuple[TileGrid, ...]:
    """Every grid of `min_tiles` to `max_tiles` tiles, by number of tiles, then by columns.

    The published code leaves the order within one number of tiles to a Python set. With `min_tiles` 1, as in every
    published checkpoint, that order never decides anything; for the rest this is the order of transformers.
    """
    sides = range(1, max_tiles + 1)
    grids = (TileGrid(cols, rows) for cols in sides for rows in sides if min_tiles <= cols * rows <= max_tiles)
    return tuple(sorted(grids, key=lambda grid: grid.cols * grid.rows))


_grids = lru_cache(candidate_grids)


def choose_grid(width: int, height: int, tiling: TilingSpec) -> TileGrid:
    """The grid nearest in aspect ratio to an image of width x height pixels.

    Of grids exactly equally near, the one with more tiles is taken only if the image has more than half the pixels
    of that grid. Without dynamic tiling the grid is 1 x 1.
    """
    if not tiling.dynamic:
        return TileGrid(1, 1)
    aspect_ratio = width / height
    nearest, best = float("inf"), TileGrid(1, 1)
    for grid in _grids(tiling.min_tiles, tiling.max_tiles):
        distance = abs(aspect_ratio - grid.cols / grid.rows)
        fills_grid = width * height > 0.5 * tiling.tile_size**2 * grid.cols * grid.rows
        if distance < nearest or (distance == nearest and fills_grid):
            nearest, best = distance, grid
    return best


def tile_image(image: Image.Image, tiling: TilingSpec) -> list[Image.Image]:
    """Cut an image into RGB tiles of tile_size x tile_size, row by row; a thumbnail comes last if there are several.

    Raises:
        InputError: the image has no pixels, too many, or more than 8 bits of grey.
    """
    _check_size(image, "image")
    image = _to_rgb(image, "image")
    size = tiling.tile_size
    grid = choose_grid(*image.size, tiling)
    resized = image.resize((size * grid.cols, size * grid.rows))
    corners = [(size * col, size * row) for row in range(grid.rows) for col in range(grid.cols)]
    tiles = [resized.crop((left, top, left + size, top + size)) for left, top in corners]
    if tiling.use_thumbnail and len(tiles) > 1:
        tiles.append(image.resize((size, size)))
    return tiles


def normalize(tiles: Sequence[Image.Image]) -> np.ndarray:
    """RGB tiles of one size S -> float32 [T, 3, S, S], scaled to 0..1 and normalized with ImageNet's mean and std."""
    pixels_THW3 = np.stack([np.asarray(tile) for tile in tiles]).astype(np.float32)
    pixels_THW3 /= np.float32(255)
    pixels_THW3 -= np.asarray(IMAGENET_MEAN, np.float32)
    pixels_THW3 /= np.asarray(IMAGENET_STD, np.float32)
    return np.ascontiguousarray(pixels_THW3.transpose(0, 3, 1, 2))


def pixel_values(images: Sequence[Image.Image], tiling: TilingSpec) -> tuple[np.ndarray, list[int]]:
    """All tiles of several images, float32 [T, 3, S, S], and how many of them belong to each image.

    Raises:
        InputError: as `tile_image`.
    """
    tiles_by_image = [tile_image(image, tiling) for image in images]
    tiles_per_image = [len(tiles) for tiles in tiles_by_image]
    if not images:
        return np.empty((0, 3, tiling.tile_size, tiling.tile_size), np.float32), tiles_per_image
    return normalize([tile for tiles in tiles_by_image for tile in tiles]), tiles_per_image


def _decode(file: BinaryIO, where: object) -> Image.Image:
    try:
        with Image.open(file, formats=FORMATS) as image:
            _check_size(image, where)
            image.load()
            return _to_rgb(image, where)
    except InputError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_large(where, error) from error
    except Image.UnidentifiedImageError as error:
        formats = " ".join(FORMATS)
        raise InputError("The file is not an image of a known format.", where=where, expected=formats) from error
    except Exception as error:  # Pillow's decoders answer damaged data with a dozen kinds of exception.
        raise InputError("The image is damaged or cut off.", where=where, found=error) from error


def _check_size(image: Image.Image, where: object) -> None:
    width, height = image.size
    if width < 1 or height < 1:
        raise InputError("The image has no pixels.", where=where, found=f"{width} x {height}")
    if width * height > MAX_PIXELS:
        raise _too_large(where, f"{width} x {height} pixels")


def _too_large(where: object, found: object) -> InputError:
    limit = f"at most {MAX_PIXELS // 1_000_000} megapixels"
    return InputError("The image is too large.", where=where, expected=limit, found=found, fix="scale it down first")


def _to_rgb(image: Image.Image, where: object) -> Image.Image:
    if image.mode in _DEEP_MODES:
        raise InputError(
            "The image has more than 8 bits per sample.",
            where=where,
            expected="8 bits per sample",
            found=f"Pillow mode {image.mode}",
            fix="convert it to an 8-bit PNG or JPEG first",
        )
    return image.convert("RGB")
