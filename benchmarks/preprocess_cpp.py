"""Preprocessing in libr1v against Pillow and numpy: from an image file to normalized tiles, the same bits.

Generated photographs as JPEG, PNG and WebP become up to 12 tiles of 448 pixels and a thumbnail: by our Python code
(Pillow decodes and resizes, numpy normalizes), and by engines/image with one thread and with two, by turns in one run.
The program is built as it is installed (CMake's Release).

    python benchmarks/preprocess_cpp.py [--repeats 9]
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import time
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
import numpy as np
import psutil
from measure import interleaved, machine, ratio, write_results
from PIL import Image

from r1v_export.model_spec import IMAGENET_MEAN, IMAGENET_STD, TilingSpec
from r1v_export.processing.image_size import MAX_PIXELS, MAX_SIDE
from r1v_export.processing.load_image import load_image
from r1v_export.processing.preprocess import pixel_values
from r1v_export.processing.tiling import grids

PROJECT = Path(__file__).parents[1]
TILING = TilingSpec(tile_size=448, dynamic=True, min_tiles=1, max_tiles=12, use_thumbnail=True)
SIZES = ((640, 480), (1600, 1200), (4000, 3000))
FORMATS: dict[str, dict[str, Any]] = {"jpeg": {"quality": 90}, "png": {}, "webp": {"quality": 85}}
QUANTITIES = ("decode_ms", "tiles_ms", "total_ms", "processor_ms")


def photograph(width: int, height: int) -> Image.Image:
    """Smooth colors with a little noise, which compress about as photographs do."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (height // 16 + 2, width // 16 + 2, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((width, height))).astype(np.float32)
    return Image.fromarray(np.clip(smooth + rng.normal(0, 4, smooth.shape), 0, 255).astype(np.uint8))


def write_images(folder: Path) -> list[Path]:
    files = []
    for size in SIZES:
        image = photograph(*size)
        for kind, options in FORMATS.items():
            files.append(folder / f"{size[0]}x{size[1]}.{kind}")
            image.save(files[-1], **options)
    return files


def write_pipeline(path: Path) -> Path:
    """The part of pipeline.json that preprocessing reads."""
    tiling = {
        "tile_size": TILING.tile_size,
        "thumbnail": TILING.use_thumbnail,
        "max_tiles_per_image": TILING.max_tiles_per_image,
        "grids": [grid._asdict() for grid in grids(TILING)],
        "mean": IMAGENET_MEAN,
        "std": IMAGENET_STD,
        "max_pixels": MAX_PIXELS,
        "max_side": MAX_SIDE,
    }
    path.write_text(json.dumps({"image_policy": "as_displayed", "tiling": tiling}))
    return path


def build(folder: Path) -> Path:
    """The timed program."""
    subprocess.run(["cmake", "-S", PROJECT, "-B", folder, "-G", "Ninja"], check=True, stdout=subprocess.DEVNULL)
    subprocess.run(["ninja", "-C", folder, "r1v_preprocess_bench"], check=True, stdout=subprocess.DEVNULL)
    return folder / "engines/tests/image/r1v_preprocess_bench"


def in_python(file: Path) -> tuple[dict[str, float], str]:
    """Milliseconds, and a digest of the tiles."""
    processor, start = time.process_time(), time.perf_counter()
    image = load_image(file)
    decoded = time.perf_counter()
    values, _ = pixel_values([image], TILING)
    done, spent = time.perf_counter(), time.process_time() - processor
    times = ((decoded - start) * 1e3, (done - decoded) * 1e3, (done - start) * 1e3, spent * 1e3)
    return dict(zip(QUANTITIES, times, strict=True)), hashlib.sha256(values.tobytes()).hexdigest()


def in_cpp(program: subprocess.Popen[str], file: Path, threads: int) -> tuple[dict[str, float], str]:
    """The same of the program, with at most so many threads."""
    assert program.stdin is not None
    assert program.stdout is not None
    program.stdin.write(f"{file} {threads}\n")
    program.stdin.flush()
    decode, tiles, processor, digest = program.stdout.readline().split()
    times = (float(decode), float(tiles), float(decode) + float(tiles), float(processor))
    return dict(zip(QUANTITIES, times, strict=True)), digest


def compare(file: Path, program: subprocess.Popen[str], repeats: int) -> dict[str, Any]:
    """Medians of one image, whose tiles must be the same."""
    contenders = {
        "python": partial(in_python, file),
        "cpp_1_thread": partial(in_cpp, program, file, 1),
        "cpp_2_threads": partial(in_cpp, program, file, 2),
    }
    assert len({contender()[1] for contender in contenders.values()}) == 1, "the tiles differ"
    times = interleaved({name: lambda c=c: c()[0] for name, c in contenders.items()}, repeats)
    names = ("cpp_1_thread", "cpp_2_threads")
    ratios = {name: {each: ratio(times, "python", name, each) for each in QUANTITIES} for name in names}
    return {"python_over": ratios, "load_average": psutil.getloadavg()[0], "milliseconds": times}


@click.command(help=__doc__)
@click.option("--repeats", default=9, show_default=True)
def main(repeats: int) -> None:
    results: dict[str, Any] = {"machine": machine(("pillow", "numpy"))}
    with TemporaryDirectory() as name:
        folder = Path(name)
        command = [build(folder / "build"), write_pipeline(folder / "pipeline.json")]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as program:
            for file in write_images(folder):
                results[file.name] = compare(file, program, repeats)
                print(file.name, json.dumps(results[file.name]["python_over"]))
    print(write_results("preprocess-cpp", results))


if __name__ == "__main__":
    main()
