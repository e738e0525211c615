"""What a scene says is what its image shows."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

import numpy as np
import pytest
from PIL import Image

from r1v_export.nano.scenes import (
    COLOURS,
    MANY_TILE_SIZES,
    MAX_BAR_HEIGHT,
    SHAPES,
    SINGLE_TILE_SIZES,
    ChartScene,
    Object,
    ObjectScene,
    chart_scene,
    draw,
    object_scene,
)

SIZES = sorted({*SINGLE_TILE_SIZES, *MANY_TILE_SIZES})
SMALLEST_SIDE_PX = 20


def object_scenes(count: int = 60) -> Iterator[ObjectScene]:
    return (object_scene(Random(seed), SIZES[seed % len(SIZES)]) for seed in range(count))


def chart_scenes(count: int = 60) -> Iterator[ChartScene]:
    return (chart_scene(Random(seed), SIZES[seed % len(SIZES)]) for seed in range(count))


def share_of(colour: str, image: Image.Image, box: tuple[float, float, float, float]) -> float:
    """Share of the pixels in left, top, right, bottom that have exactly that colour."""
    pixels = np.asarray(image.crop(tuple(round(edge) for edge in box)))
    return float((pixels == COLOURS[colour]).all(-1).mean())


def test_an_object_lies_inside_its_cell_and_is_large_enough_to_see():
    for scene in object_scenes():
        width, height = scene.size
        for item in scene.objects:
            left, top, side = item.box
            assert side >= SMALLEST_SIDE_PX
            assert item.column * width / 3 < left
            assert left + side < (item.column + 1) * width / 3
            assert item.row * height / 3 < top
            assert top + side < (item.row + 1) * height / 3


def test_objects_are_listed_in_reading_order_and_never_share_a_cell():
    for scene in object_scenes():
        cells = [(item.row, item.column) for item in scene.objects]
        assert cells == sorted(set(cells))


def test_every_object_is_drawn_in_its_colour_where_the_scene_says():
    for scene in object_scenes():
        image = draw(scene)
        for item in scene.objects:
            left, top, side = item.box
            middle = (left + 0.42 * side, top + 0.42 * side, left + 0.58 * side, top + 0.58 * side)
            assert share_of(item.colour, image, middle) == 1.0


def test_nothing_is_drawn_that_the_scene_does_not_say():
    for scene in object_scenes():
        pixels = np.asarray(draw(scene))
        for item in scene.objects:
            left, top, side = item.box
            rows, columns = slice(int(top), int(top + side) + 2), slice(int(left), int(left + side) + 2)
            pixels = pixels.copy()
            pixels[rows, columns] = scene.background
        assert (pixels == scene.background).all()


# Share of a square box that each shape covers.
COVERED = {"circle": np.pi / 4, "square": 1.0, "triangle": 0.5, "cross": 5 / 9}


@pytest.mark.parametrize("shape", SHAPES)
def test_a_shape_covers_its_share_of_the_box(shape: str):
    scene = ObjectScene((112, 112), (255, 255, 255), (Object(shape, "red", 1, 1, (40.0, 40.0, 32.0)),))
    assert share_of("red", draw(scene), (40, 40, 72, 72)) == pytest.approx(COVERED[shape], abs=0.08)


def test_the_corners_of_a_box_tell_the_shapes_apart():
    def corners(shape: str) -> tuple[bool, bool]:
        scene = ObjectScene((112, 112), (255, 255, 255), (Object(shape, "red", 1, 1, (40.0, 40.0, 32.0)),))
        image = draw(scene)
        return share_of("red", image, (41, 41, 44, 44)) == 1, share_of("red", image, (66, 68, 69, 71)) == 1

    assert corners("square") == (True, True)
    assert corners("triangle") == (False, True)
    assert corners("circle") == corners("cross") == (False, False)


def test_a_bar_reaches_its_grid_line_and_no_further():
    for scene in chart_scenes():
        image = draw(scene)
        left, top, right, bottom = scene.frame
        slot, unit = (right - left) / len(scene.bars), (bottom - top) / MAX_BAR_HEIGHT
        for index, bar in enumerate(scene.bars):
            x = left + (index + 0.5) * slot
            bar_top = bottom - bar.height * unit
            assert share_of(bar.colour, image, (x - 2, bar_top + 3, x + 2, bottom - 3)) == 1.0
            assert bar_top < 4 or share_of(bar.colour, image, (x - 2, 0, x + 2, bar_top - 3)) == 0.0


def test_the_bars_of_a_chart_have_different_colours_and_heights_that_fit():
    for scene in chart_scenes():
        assert len({bar.colour for bar in scene.bars}) == len(scene.bars) >= 2
        assert all(1 <= bar.height <= MAX_BAR_HEIGHT for bar in scene.bars)


@pytest.mark.parametrize("size", SIZES)
def test_a_image_has_the_size_of_its_scene(size: tuple[int, int]):
    assert draw(object_scene(Random(0), size)).size == size
    assert draw(chart_scene(Random(0), size)).size == size
