"""Images become tiles: InternVL's dynamic tiling, bit-exact with the published code on Pillow 10 to 12.

An image is resized, without keeping its aspect ratio, to the grid of square tiles nearest to its shape, cut row by
row, and followed by a thumbnail of the whole. Pillow 13 changed the order of its two resize passes for some shapes, and
with it pixels by up to two levels; the models were trained with the older order, hence `pillow<13` in pyproject.toml.

Source: `dynamic_preprocess` and `build_transform` of the InternVL and Skywork-R1V model cards.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from r1v_export.config import ImagePolicy
from r1v_export.errors import InputError
from r1v_export.model_spec import IMAGENET_MEAN, IMAGENET_STD, TilingSpec
from r1v_export.processing.image_policy import POLICY_KEY, to_rgb
from r1v_export.processing.load_image import check_size
from r1v_export.processing.tiling import choose_grid


def tile_image(image: Image.Image, tiling: TilingSpec, policy: ImagePolicy | None = None) -> list[Image.Image]:
    """Cut an image into RGB tiles of tile_size x tile_size, row by row; a thumbnail comes last if there are several.

    Args:
        policy: how an image that `load_image` did not load becomes RGB (`as_displayed` if omitted), and the one that
            a loaded image must have been loaded with (any if omitted).

    Raises:
        InputError: the image has no pixels, is too large, was loaded with another policy, or cannot become RGB.
    """
    image = rgb_image(image, policy)
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


def pixel_values(
    images: Sequence[Image.Image], tiling: TilingSpec, policy: ImagePolicy | None = None
) -> tuple[np.ndarray, list[int]]:
    """All tiles of several images, float32 [T, 3, S, S], and how many of them belong to each image.

    Args:
        policy: as for `tile_image`.

    Raises:
        InputError: as `tile_image`.
    """
    tiles_by_image = [tile_image(image, tiling, policy) for image in images]
    tiles_per_image = [len(tiles) for tiles in tiles_by_image]
    if not images:
        return np.empty((0, 3, tiling.tile_size, tiling.tile_size), np.float32), tiles_per_image
    return normalize([tile for tiles in tiles_by_image for tile in tiles]), tiles_per_image


def rgb_image(image: Image.Image, policy: ImagePolicy | None = None) -> Image.Image:
    """An image as it is cut into tiles: RGB, of a size that is taken; itself where it is that already.

    Args:
        policy: as for `tile_image`.

    Raises:
        InputError: as `tile_image`.
    """
    check_size(image, "image")
    loaded_with = image.info.get(POLICY_KEY)
    if loaded_with is None:
        return to_rgb(image, policy or "as_displayed", "image")
    if policy is not None and policy != loaded_with:
        raise InputError(
            "The image was loaded with another policy than the bundle was built with.",
            where="image",
            expected=policy,
            found=loaded_with,
            fix="load it with the runner's own: load_image(source, runner.image_policy)",
        )
    return image
