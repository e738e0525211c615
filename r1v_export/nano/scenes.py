"""Generated images: colored shapes on a loose grid, and small bar charts.

A scene says exactly what is in an image, so the right answer to any question about it is known. Everything comes
from the `random.Random` that is passed in; nothing depends on fonts, on the machine or on the time.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from PIL import Image, ImageDraw

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (220, 40, 40),
    "green": (40, 160, 60),
    "blue": (45, 85, 220),
    "yellow": (245, 205, 40),
    "purple": (150, 60, 180),
    "black": (30, 30, 30),
}
SHAPES = ("circle", "square", "triangle", "cross")
ROWS = ("top", "middle", "bottom")
COLUMNS = ("left", "centre", "right")
MAX_OBJECTS = 4
CROWD = 6
"""The most objects in a crowded image: only training shows such."""
MAX_BAR_HEIGHT = 5

SINGLE_TILE_SIZES = ((112, 112), (112, 112), (112, 112), (128, 96), (96, 128))
"""Width and height of images that make one tile; a repeated size is drawn that much more often."""
MANY_TILE_SIZES = ((224, 112), (112, 224), (224, 224))
"""Width and height of images that make several tiles and a thumbnail."""
MANY_TILE_SHARE = 0.4

_BACKGROUNDS = ((255, 255, 255), (244, 244, 240), (236, 240, 246))
_GRID_LINE, _AXIS = (200, 200, 200), (90, 90, 90)
_SUPERSAMPLING = 2


@dataclass(frozen=True)
class Object:
    """One colored shape in a cell of the 3 x 3 grid; `box` is left, top, side in pixels."""

    shape: str
    colour: str
    row: int
    column: int
    box: tuple[float, float, float]

    @property
    def name(self) -> str:
        """Color and shape, as in "red circle"."""
        return f"{self.colour} {self.shape}"

    @property
    def place(self) -> str:
        """Row and column, as in "top left"."""
        return f"{ROWS[self.row]} {COLUMNS[self.column]}"

    def __str__(self) -> str:
        return f"{self.name} {self.place}"


@dataclass(frozen=True)
class ObjectScene:
    """Objects in reading order: row by row, left to right."""

    size: tuple[int, int]
    background: tuple[int, int, int]
    objects: tuple[Object, ...]


@dataclass(frozen=True)
class Bar:
    """One bar of a chart; `height` in grid lines."""

    colour: str
    height: int

    def __str__(self) -> str:
        return f"{self.colour} {self.height}"


@dataclass(frozen=True)
class ChartScene:
    """Bars from left to right within a frame: left, top, right, bottom in pixels."""

    size: tuple[int, int]
    background: tuple[int, int, int]
    frame: tuple[float, float, float, float]
    bar_width: float
    """Share of a bar's slot that it fills."""
    bars: tuple[Bar, ...]


Scene = ObjectScene | ChartScene


def image_size(rng: Random, many_tile_share: float = MANY_TILE_SHARE) -> tuple[int, int]:
    """A width and height in pixels."""
    return rng.choice(MANY_TILE_SIZES if rng.random() < many_tile_share else SINGLE_TILE_SIZES)


def object_scene(rng: Random, size: tuple[int, int], max_objects: int = MAX_OBJECTS) -> ObjectScene:
    """One to `max_objects` objects. The scene's own small palette makes repetitions, hence counts above one, common."""
    colours = rng.sample(list(COLOURS), rng.randint(2, len(COLOURS)))
    shapes = rng.sample(SHAPES, rng.randint(1, len(SHAPES)))
    cells = sorted(rng.sample(range(len(ROWS) * len(COLUMNS)), rng.randint(1, max_objects)))
    objects = tuple(_object(rng, size, rng.choice(shapes), rng.choice(colours), cell) for cell in cells)
    return ObjectScene(size, rng.choice(_BACKGROUNDS), objects)


def _object(rng: Random, size: tuple[int, int], shape: str, colour: str, cell: int) -> Object:
    """An object somewhere inside its cell, never touching the cell's edge."""
    row, column = divmod(cell, len(COLUMNS))
    cell_width, cell_height = size[0] / len(COLUMNS), size[1] / len(ROWS)
    side = min(cell_width, cell_height) * rng.uniform(0.66, 0.88)
    left = column * cell_width + 1 + rng.random() * (cell_width - side - 2)
    top = row * cell_height + 1 + rng.random() * (cell_height - side - 2)
    return Object(shape, colour, row, column, (left, top, side))


def chart_scene(rng: Random, size: tuple[int, int]) -> ChartScene:
    """Two to four bars of different colors, one to five grid lines tall."""
    colours = rng.sample(list(COLOURS), rng.randint(2, 4))
    bars = tuple(Bar(colour, rng.randint(1, MAX_BAR_HEIGHT)) for colour in colours)
    width, height = size
    left, right = width * rng.uniform(0.03, 0.12), width * rng.uniform(0.88, 0.97)
    top, bottom = height * rng.uniform(0.03, 0.09), height * rng.uniform(0.91, 0.97)
    return ChartScene(size, rng.choice(_BACKGROUNDS), (left, top, right, bottom), rng.uniform(0.5, 0.75), bars)


def draw(scene: Scene) -> Image.Image:
    """The scene as an RGB image, drawn at twice its size and averaged down, so that edges are smooth."""
    width, height = (side * _SUPERSAMPLING for side in scene.size)
    image = Image.new("RGB", (width, height), scene.background)
    canvas = ImageDraw.Draw(image)
    if isinstance(scene, ObjectScene):
        for item in scene.objects:
            _draw_object(canvas, item)
    else:
        _draw_chart(canvas, scene)
    return image.reduce(_SUPERSAMPLING)


def _draw_object(canvas: ImageDraw.ImageDraw, item: Object) -> None:
    left, top, side = (value * _SUPERSAMPLING for value in item.box)
    right, bottom, fill = left + side, top + side, COLOURS[item.colour]
    if item.shape == "circle":
        canvas.ellipse((left, top, right, bottom), fill=fill)
    elif item.shape == "square":
        canvas.rectangle((left, top, right, bottom), fill=fill)
    elif item.shape == "triangle":
        canvas.polygon(((left + side / 2, top), (right, bottom), (left, bottom)), fill=fill)
    else:
        third = side / 3
        canvas.rectangle((left + third, top, right - third, bottom), fill=fill)
        canvas.rectangle((left, top + third, right, bottom - third), fill=fill)


def _draw_chart(canvas: ImageDraw.ImageDraw, scene: ChartScene) -> None:
    left, top, right, bottom = (edge * _SUPERSAMPLING for edge in scene.frame)
    unit = (bottom - top) / MAX_BAR_HEIGHT
    for line in range(1, MAX_BAR_HEIGHT + 1):
        y = bottom - line * unit
        canvas.line((left, y, right, y), fill=_GRID_LINE, width=_SUPERSAMPLING)
    slot = (right - left) / len(scene.bars)
    for index, bar in enumerate(scene.bars):
        middle, half = left + (index + 0.5) * slot, scene.bar_width * slot / 2
        canvas.rectangle((middle - half, bottom - bar.height * unit, middle + half, bottom), fill=COLOURS[bar.colour])
    canvas.line((left, top, left, bottom), fill=_AXIS, width=_SUPERSAMPLING)
    canvas.line((left, bottom, right, bottom), fill=_AXIS, width=_SUPERSAMPLING)
