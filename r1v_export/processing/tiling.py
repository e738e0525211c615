"""How many tiles an image is cut into, by its size alone.

Source: `dynamic_preprocess` of the InternVL and Skywork-R1V model cards.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from r1v_export.model_spec import TilingSpec


class TileGrid(NamedTuple):
    """Tiles in a row and in a column."""

    cols: int
    rows: int


def candidate_grids(min_tiles: int, max_tiles: int) -> tuple[TileGrid, ...]:
    """Every grid of `min_tiles` to `max_tiles` tiles, by number of tiles, then by columns.

    The published code leaves the order within one number of tiles to a Python set. With `min_tiles` 1, as in every
    published checkpoint, that order never decides anything; for the rest this is the order of transformers.
    """
    sides = range(1, max_tiles + 1)
    grids = (TileGrid(cols, rows) for cols in sides for rows in sides if min_tiles <= cols * rows <= max_tiles)
    return tuple(sorted(grids, key=lambda grid: grid.cols * grid.rows))


_grids = lru_cache(candidate_grids)


def grids(tiling: TilingSpec) -> tuple[TileGrid, ...]:
    """The grids that an image may be cut into, in the order in which `choose_grid` compares them."""
    return _grids(tiling.min_tiles, tiling.max_tiles) if tiling.dynamic else (TileGrid(1, 1),)


def choose_grid(width: int, height: int, tiling: TilingSpec) -> TileGrid:
    """The grid nearest in aspect ratio to an image of width x height pixels.

    Of grids exactly equally near, the one with more tiles is taken only if the image has more than half the pixels
    of that grid. Without dynamic tiling the grid is 1 x 1.
    """
    aspect_ratio = width / height
    nearest, best = float("inf"), TileGrid(1, 1)
    for grid in grids(tiling):
        distance = abs(aspect_ratio - grid.cols / grid.rows)
        fills_grid = width * height > 0.5 * tiling.tile_size**2 * grid.cols * grid.rows
        if distance < nearest or (distance == nearest and fills_grid):
            nearest, best = distance, grid
    return best


def tile_count(width: int, height: int, tiling: TilingSpec) -> int:
    """Tiles that `tile_image` cuts an image of width x height pixels into, the thumbnail included."""
    grid = choose_grid(width, height, tiling)
    tiles = grid.cols * grid.rows
    return tiles + (tiling.use_thumbnail and tiles > 1)
