"""Golden vectors of engines/image: generated image files, and the tiles that the Python code makes of them."""

from __future__ import annotations

import hashlib
import io
import json
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
from PIL import Image, ImageFile

from r1v_export.config import ImagePolicy
from r1v_export.errors import InputError
from r1v_export.model_spec import IMAGENET_MEAN, IMAGENET_STD, TilingSpec
from r1v_export.processing.image_size import MAX_PIXELS, MAX_SIDE
from r1v_export.processing.load_image import load_image
from r1v_export.processing.preprocess import pixel_values
from r1v_export.processing.tiling import grids

REPOSITORY = Path(__file__).parents[2]
SIZES = (
    (1, 1),
    (1, 300),
    (300, 1),
    (2, 3),
    (5, 4),
    (7, 129),
    (33, 33),
    (64, 48),
    (101, 53),
    (127, 200),
    (640, 97),
    (5, 700),
)
LARGE_SIZES = ((1600, 1200), (1023, 2049), (3000, 40), (1, 4000), (9, 2055), (448, 448), (896, 448))
ORIENTATION = 0x0112


class EncodedCase(NamedTuple):
    """An image file by name. Files that are damaged on purpose may be refused."""

    name: str
    data: bytes


def describe_tiling(spec: TilingSpec) -> dict[str, Any]:
    """`tiling` of pipeline.json."""
    return {
        "tile_size": spec.tile_size,
        "thumbnail": spec.use_thumbnail,
        "max_tiles_per_image": spec.max_tiles_per_image,
        "grids": [grid._asdict() for grid in grids(spec)],
        "mean": IMAGENET_MEAN,
        "std": IMAGENET_STD,
        "max_pixels": MAX_PIXELS,
        "max_side": MAX_SIDE,
    }


def sample_pixels(rng: np.random.Generator, width: int, height: int, channels: int) -> np.ndarray:
    """uint8 [height, width, channels]: noise, a gradient, or flat blocks with hard edges."""
    kind = rng.integers(3)
    if kind == 0:
        return rng.integers(0, 256, (height, width, channels), dtype=np.uint8)
    if kind == 1:
        rows, columns = np.linspace(0, 255, height)[:, None, None], np.linspace(0, 255, width)[None, :, None]
        return ((rows * rng.random(channels) + columns * rng.random(channels)) % 256).astype(np.uint8)
    block = int(rng.integers(1, 17))
    small = rng.integers(0, 2, (height // block + 1, width // block + 1, channels), dtype=np.uint8) * 255
    return np.kron(small, np.ones((block, block, 1), np.uint8))[:height, :width]


def sample_image(rng: np.random.Generator, mode: str, size: tuple[int, int]) -> Image.Image:
    """A generated image of a Pillow mode."""
    channels = {"L": 1, "1": 1, "P": 3, "LA": 2, "RGB": 3, "RGBA": 4, "CMYK": 4, "I;16": 1}[mode]
    pixels = sample_pixels(rng, *size, channels)
    if mode == "I;16":
        return Image.fromarray(
            pixels[..., 0].astype(np.uint16) * 257 ^ rng.integers(0, 256, pixels.shape[:2], np.uint16)
        )
    if mode in ("L", "1"):
        return Image.fromarray(pixels[..., 0]).convert(mode)
    if mode == "P":
        return Image.fromarray(pixels).convert("P", palette=Image.Palette.ADAPTIVE, colors=int(rng.integers(2, 257)))
    return Image.fromarray(pixels, mode if mode == "CMYK" else None)


def save(image: Image.Image, kind: str, **options: object) -> bytes:
    """The encoded image. Pillow's buffer is too small for some small JPEGs: it gets a larger one."""
    buffer = io.BytesIO()
    with patch.object(ImageFile, "MAXBLOCK", 1 << 22):
        image.save(buffer, kind, **options)
    return buffer.getvalue()


def exif_options(rng: np.random.Generator) -> dict[str, object]:
    """EXIF with an orientation, for half of the images."""
    if rng.integers(2):
        return {}
    exif = Image.Exif()
    exif[ORIENTATION] = int(rng.integers(0, 11))
    if rng.integers(2):
        exif.endian = ">"
    return {"exif": exif}


def png(width: int, height: int, depth: int, color_type: int, rng: np.random.Generator, **options: Any) -> bytes:
    """A PNG written by hand: all depths, all filters, interlaced or not, with PLTE and tRNS as given."""
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[color_type]
    interlace = bool(options.get("interlace"))
    bits = depth * channels
    passes = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
    rows = bytearray()
    for left, top, step_x, step_y in passes if interlace else ((0, 0, 1, 1),):
        columns, lines = len(range(left, width, step_x)), len(range(top, height, step_y))
        if columns:
            for _ in range(lines):
                rows += bytes([int(rng.integers(5))]) + rng.bytes((columns * bits + 7) // 8)
    header = struct.pack(">IIBBBBB", width, height, depth, color_type, 0, 0, int(interlace))
    chunks = [(b"IHDR", header)]
    chunks += [(name, options[key]) for key, name in (("palette", b"PLTE"), ("key", b"tRNS")) if key in options]
    chunks += options.get("before", [])
    packed = zlib.compress(bytes(rows), int(rng.integers(0, 10)))
    cut = int(rng.integers(0, len(packed) + 1))
    chunks += [(b"IDAT", packed[:cut]), (b"IDAT", packed[cut:])]
    chunks += [*options.get("after", []), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in chunks
    )


def handmade_png(rng: np.random.Generator) -> bytes:
    """A PNG of any depth, color type, filters, interlacing, palette and transparency."""
    pairs = ((1, 0), (2, 0), (4, 0), (8, 0), (16, 0), (8, 2), (16, 2), (1, 3), (2, 3), (4, 3), (8, 3))
    pairs += ((8, 4), (16, 4), (8, 6), (16, 6))
    depth, color_type = pairs[rng.integers(len(pairs))]
    options: dict[str, Any] = {"interlace": rng.integers(2)}
    if color_type == 3 and rng.integers(8):
        options["palette"] = rng.bytes(3 * int(rng.integers(1, 257)))
    if rng.integers(2):
        colors = {0: 1, 2: 3}.get(color_type)
        numbers = rng.integers(0, 2**depth if rng.integers(4) else 65_536, colors)
        simple = b"\xff" * int(rng.integers(0, 9)) + b"\0" + b"\xff" * int(rng.integers(0, 3))
        alpha = simple if rng.integers(2) else rng.bytes(int(rng.integers(1, 257)))
        options["key"] = alpha if colors is None else numbers.astype(">u2").tobytes()
    width, height = (int(side) for side in rng.integers(1, 70, 2))
    return png(width, height, depth, color_type, rng, **options)


def jpeg(rng: np.random.Generator, size: tuple[int, int]) -> bytes:
    mode = ("RGB", "RGB", "L", "CMYK")[rng.integers(4)]
    options: dict[str, Any] = exif_options(rng)
    options |= {"quality": int(rng.integers(20, 101)), "progressive": bool(rng.integers(2))}
    if mode == "RGB":
        options["subsampling"] = int(rng.integers(0, 3))
    if rng.integers(3) == 0:
        options["restart_marker_blocks"] = int(rng.integers(1, 5))
    return save(sample_image(rng, mode, size), "JPEG", **options)


def webp(rng: np.random.Generator, size: tuple[int, int]) -> bytes:
    image = sample_image(rng, ("RGB", "RGBA")[rng.integers(2)], size)
    options: dict[str, Any] = exif_options(rng) | {"lossless": bool(rng.integers(2)), "exact": bool(rng.integers(2))}
    if rng.integers(5) == 0:
        others = [sample_image(rng, "RGBA", size) for _ in range(2)]
        options |= {"save_all": True, "append_images": others}
    return save(image, "WEBP", method=0, **options)


def pillow_png(rng: np.random.Generator, size: tuple[int, int]) -> bytes:
    mode = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")[rng.integers(7)]
    image = sample_image(rng, mode, size)
    options = exif_options(rng) | {"compress_level": int(rng.integers(0, 4))}
    if mode == "P" and rng.integers(2):
        options["transparency"] = int(rng.integers(4)) if rng.integers(2) else rng.bytes(int(rng.integers(1, 100)))
    if mode in ("RGB", "RGBA", "L") and rng.integers(6) == 0:
        frames = [sample_image(rng, mode, size) for _ in range(2)]
        choices = {"default_image": bool(rng.integers(2)), "blend": int(rng.integers(2))}
        options |= {"save_all": True, "append_images": frames, **choices}
    return save(image, "PNG", **options)


def sound_cases(count: int) -> Iterator[EncodedCase]:
    """Generated images of all formats and modes."""
    makers: tuple[tuple[str, Callable[..., bytes]], ...] = (("jpeg", jpeg), ("png", pillow_png), ("webp", webp))
    for number in range(count):
        rng = np.random.default_rng(number)
        if number % 4 == 3:
            yield EncodedCase(f"handmade-{number}.png", handmade_png(rng))
            continue
        name, make = makers[number % 4]
        sizes = LARGE_SIZES if number % 40 < 4 else SIZES
        yield EncodedCase(f"{name}-{number}.{name}", make(rng, sizes[rng.integers(len(sizes))]))


def damaged_cases(count: int) -> Iterator[EncodedCase]:
    """Small images that are cut off, or of which some bytes are others."""
    for number in range(count):
        rng = np.random.default_rng(10_000 + number)
        name, make = (("jpeg", jpeg), ("png", pillow_png), ("webp", webp))[number % 3]
        data = bytearray(handmade_png(rng) if number % 6 == 1 else make(rng, (37, 23)))
        if rng.integers(2):
            del data[int(rng.integers(len(data))) :]
        else:
            for _ in range(int(rng.integers(1, 4))):
                start = int(rng.integers(len(data)))
                data[start : start + 1] = rng.bytes(int(rng.integers(0, 4)))
        yield EncodedCase(f"damaged-{number}.{name}", bytes(data))


def file_cases() -> Iterator[EncodedCase]:
    """The images of the repository's tests and fuzzers."""
    for folder in ("tests/data/images", "engines/fuzz/corpus/image"):
        for path in sorted((REPOSITORY / folder).iterdir()):
            yield EncodedCase(path.name, path.read_bytes())


def tilings() -> list[TilingSpec]:
    shapes = ((448, 12, True), (28, 12, True), (30, 6, False), (56, 40, True), (33, 1, True))
    return [
        TilingSpec(tile_size=size, dynamic=most > 1, min_tiles=1, max_tiles=most, use_thumbnail=thumbnail)
        for size, most, thumbnail in shapes
    ]


def expected_result(data: bytes, tiling: TilingSpec, policy: ImagePolicy) -> dict[str, Any]:
    """What the Python code makes of an image file: sizes and digests, or why it is refused."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = load_image(data, policy)
    except InputError as error:
        return {"refused": str(error)}
    values, (tiles,) = pixel_values([image], tiling)
    return {
        "width": image.width,
        "height": image.height,
        "rgb": hashlib.sha256(image.tobytes()).hexdigest(),
        "tiles": tiles,
        "pixel_values": hashlib.sha256(values.tobytes()).hexdigest(),
    }


def write(folder: Path, sound: int = 500, damaged: int = 300) -> None:
    """Write image files and `golden.json`, which holds their expected tiles, below a new folder."""
    folder.mkdir(parents=True)
    specs, cases = tilings(), []
    for number, case in enumerate((*file_cases(), *sound_cases(sound), *damaged_cases(damaged))):
        (folder / case.name).write_bytes(case.data)
        large = case.name.split("-")[0] in ("jpeg", "png", "webp") and number % 16 == 0
        tiling = 0 if large else 1 + number % (len(specs) - 1)
        policy: ImagePolicy = "published" if number % 5 == 4 else "as_displayed"
        entry = {"file": case.name, "policy": policy, "tiling": tiling}
        cases.append(entry | {"expected": expected_result(case.data, specs[tiling], policy)})
    document = {"tilings": [describe_tiling(spec) for spec in specs], "cases": cases}
    (folder / "golden.json").write_text(json.dumps(document), encoding="utf-8")
