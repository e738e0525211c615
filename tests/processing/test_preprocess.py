"""Tiling, against the published code, transformers' port of it, and Pillow."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers.models.got_ocr2 import image_processing_pil_got_ocr2 as got_ocr2

from r1v_export.errors import InputError
from r1v_export.model_spec import IMAGENET_MEAN, IMAGENET_STD, TilingSpec
from r1v_export.processing import load_image
from r1v_export.processing.preprocess import pixel_values
from r1v_export.processing.preprocess import tile_image as tile
from r1v_export.processing.tiling import candidate_grids, choose_grid

sides = st.integers(1, 4000)
limits = st.integers(1, 24)


def tiling(**changes: object) -> TilingSpec:
    defaults = {"tile_size": 28, "min_tiles": 1, "max_tiles": 12, "use_thumbnail": True, "dynamic": True}
    return TilingSpec(**(defaults | changes))


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def published_grid(width: int, height: int, min_num: int, max_num: int, image_size: int) -> tuple[int, int]:
    """`find_closest_aspect_ratio` of the InternVL model cards, with its set of ratios."""
    ratios = {
        (i, j)
        for n in range(min_num, max_num + 1)
        for i in range(1, n + 1)
        for j in range(1, n + 1)
        if min_num <= i * j <= max_num
    }
    best_diff, best = float("inf"), (1, 1)
    for ratio in sorted(ratios, key=lambda r: r[0] * r[1]):
        diff = abs(width / height - ratio[0] / ratio[1])
        if diff < best_diff:
            best_diff, best = diff, ratio
        elif diff == best_diff and width * height > 0.5 * image_size * image_size * ratio[0] * ratio[1]:
            best = ratio
    return best


def published_tiles(image: Image.Image, min_num: int, max_num: int, image_size: int) -> list[Image.Image]:
    """`dynamic_preprocess` of the InternVL model cards, thumbnail on."""
    cols, rows = published_grid(*image.size, min_num, max_num, image_size)
    resized = image.resize((image_size * cols, image_size * rows))
    tiles = []
    for i in range(cols * rows):
        left, top = (i % cols) * image_size, (i // cols) * image_size
        tiles.append(resized.crop((left, top, left + image_size, top + image_size)))
    if len(tiles) != 1:
        tiles.append(image.resize((image_size, image_size)))
    return tiles


def test_twelve_tiles_allow_35_grids_in_order_of_their_size():
    grids = candidate_grids(1, 12)
    assert len(grids) == len(set(grids)) == 35
    areas = [cols * rows for cols, rows in grids]
    assert areas == sorted(areas)
    assert (areas[0], areas[-1]) == (1, 12)


@given(limits, limits)
def test_candidate_grids_are_those_of_transformers(first, second):
    min_tiles, max_tiles = sorted((first, second))
    assert list(candidate_grids(min_tiles, max_tiles)) == got_ocr2.get_all_supported_aspect_ratios(min_tiles, max_tiles)


@settings(max_examples=150)
@given(sides, sides, st.integers(1, 12), st.sampled_from([28, 112, 448]))
def test_the_grid_is_that_of_the_published_code(width, height, max_tiles, size):
    spec = tiling(tile_size=size, max_tiles=max_tiles)
    assert choose_grid(width, height, spec) == published_grid(width, height, 1, max_tiles, size)


@settings(max_examples=150)
@given(sides, sides, st.integers(1, 6), st.integers(0, 8))
def test_the_grid_is_that_of_transformers_also_with_a_minimum(width, height, min_tiles, more):
    spec = tiling(tile_size=448, min_tiles=min_tiles, max_tiles=min_tiles + more)
    expected = got_ocr2.get_optimal_tiled_canvas((height, width), (448, 448), min_tiles, min_tiles + more)
    assert choose_grid(width, height, spec) == expected


@pytest.mark.parametrize(
    ("side", "grid"),
    [
        (448, (1, 1)),  # exactly half of 2 x 2's... is not more than half of it: 448^2 = 0.25 * 896^2
        (633, (1, 1)),  # 633^2 = 400,689 <= 401,408 = half of 896^2
        (634, (2, 2)),  # 634^2 = 401,956
        (950, (2, 2)),
        (951, (3, 3)),  # 951^2 = 904,401 > 903,168 = half of 1344^2
    ],
)
def test_a_square_takes_the_next_grid_once_it_has_more_than_half_its_pixels(side, grid):
    assert choose_grid(side, side, tiling(tile_size=448)) == grid


@settings(max_examples=60)
@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 12))
def test_tiles_equal_the_published_quantized_values_bit_for_bit(width, height, max_tiles):
    image = noise(width, height)
    ours = tile(image, tiling(max_tiles=max_tiles))
    published = published_tiles(image, 1, max_tiles, 28)
    assert [t.tobytes() for t in ours] == [t.tobytes() for t in published]


@pytest.mark.parametrize("size", [(300, 200), (50, 400), (90, 91), (640, 64), (57, 56)])
def test_pixel_values_equal_those_of_transformers(size):
    image = noise(*size)
    processor = got_ocr2.GotOcr2ImageProcessorPil(
        size={"height": 28, "width": 28},
        crop_to_patches=True,
        max_patches=12,
        image_mean=IMAGENET_MEAN,
        image_std=IMAGENET_STD,
    )
    expected = processor(image, return_tensors="np")
    pixels, tiles_per_image = pixel_values([image], tiling())
    assert tiles_per_image == expected["num_patches"].tolist()
    assert pixels.dtype == np.float32
    np.testing.assert_allclose(pixels, expected["pixel_values"], atol=1e-6)


def test_normalization_is_scale_then_mean_then_std_per_channel():
    image = Image.new("RGB", (28, 28), (0, 128, 255))
    pixels, _ = pixel_values([image], tiling())
    expected = [-0.485 / 0.229, (128 / 255 - 0.456) / 0.224, (1 - 0.406) / 0.225]
    np.testing.assert_allclose(pixels[0, :, 5, 5], expected, rtol=1e-6)


def test_tiles_run_row_by_row_and_the_thumbnail_comes_last():
    colors = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (255, 0, 255), (0, 255, 255)]
    image = Image.new("RGB", (84, 56))
    for index, color in enumerate(colors):
        image.paste(color, (28 * (index % 3), 28 * (index // 3), 28 * (index % 3) + 28, 28 * (index // 3) + 28))
    tiles = tile(image, tiling())
    assert [t.getpixel((14, 14)) for t in tiles[:6]] == colors
    assert len(tiles) == 7
    assert tiles[6].tobytes() == image.resize((28, 28)).tobytes()


def test_one_tile_has_no_thumbnail():
    assert len(tile(noise(28, 28), tiling())) == 1


def test_the_thumbnail_can_be_switched_off():
    assert len(tile(noise(56, 28), tiling(use_thumbnail=True))) == 3
    assert len(tile(noise(56, 28), tiling(use_thumbnail=False))) == 2


def test_without_dynamic_tiling_a_image_is_one_resized_tile():
    image = noise(300, 100)
    (only,) = tile(image, tiling(dynamic=False))
    assert only.tobytes() == image.resize((28, 28)).tobytes()


@pytest.mark.parametrize("size", [(1, 1), (5000, 1), (1, 5000)])
def test_extreme_shapes_are_tiled(size):
    tiles = tile(Image.new("RGB", size, "red"), tiling())
    assert {t.size for t in tiles} == {(28, 28)}
    assert len(tiles) in (1, 13)


def test_tiles_of_several_images_follow_each_other():
    images = [noise(56, 28, seed=1), noise(28, 28, seed=2), noise(28, 84, seed=3)]
    pixels, tiles_per_image = pixel_values(images, tiling())
    assert tiles_per_image == [3, 1, 4]
    assert pixels.shape == (8, 3, 28, 28)
    alone, _ = pixel_values(images[1:2], tiling())
    np.testing.assert_array_equal(pixels[3:4], alone)


def test_no_images_give_no_tiles():
    pixels, tiles_per_image = pixel_values([], tiling())
    assert pixels.shape == (0, 3, 28, 28)
    assert tiles_per_image == []


def test_a_image_without_pixels_is_refused():
    with pytest.raises(InputError, match="no pixels"):
        tile(Image.new("RGB", (0, 5)), tiling())


def test_an_image_over_the_pixel_limit_is_refused():
    load_image.check_size(noise(11, 9), "an image", max_pixels=99)
    with pytest.raises(InputError, match="too large"):
        load_image.check_size(noise(10, 10), "an image", max_pixels=99)
    width = 10_000
    with pytest.raises(InputError, match="too large"):
        tile(Image.new("L", (width, load_image.MAX_PIXELS // width + 1)), tiling())


def test_an_image_that_was_not_loaded_becomes_rgb_as_displayed_unless_published_is_asked_for():
    image = Image.new("RGBA", (28, 28), (0, 0, 0, 0))
    assert tile(image, tiling())[0].getpixel((0, 0)) == (255, 255, 255)
    assert tile(image, tiling(), "published")[0].getpixel((0, 0)) == (0, 0, 0)


def test_an_image_loaded_with_one_policy_is_refused_by_the_other(tmp_path):
    noise(28, 28).save(tmp_path / "image.png")
    image = load_image.load_image(tmp_path / "image.png", "published")
    assert len(tile(image, tiling(), "published")) == len(tile(image, tiling())) == 1
    with pytest.raises(InputError, match=r"(?s)another policy.*as_displayed.*published"):
        tile(image, tiling(), "as_displayed")


def test_pillow_resizes_horizontally_first():
    """What `pillow<13` in pyproject.toml is for: the order of the two passes decides how each rounds."""
    image = noise(200, 300)
    both = image.resize((28, 28))
    horizontal_first = image.resize((28, 300)).resize((28, 28))
    vertical_first = image.resize((200, 28)).resize((28, 28))
    assert both.tobytes() == horizontal_first.tobytes()
    assert both.tobytes() != vertical_first.tobytes()
