"""Images of every kind, and things that are no images."""

from __future__ import annotations

import contextlib
import io
import os
import struct
import warnings
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from r1v_export.errors import InputError
from r1v_export.processing.load_image import load_image


def sample_image(width: int = 20, height: int = 12) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF"])
def test_a_lossless_file_gives_its_pixels(kind, tmp_path):
    file = tmp_path / "image"
    file.write_bytes(encoded(sample_image(), kind))
    for source in (file, str(file), file.read_bytes(), io.BytesIO(file.read_bytes())):
        image = load_image(source)
        assert image.mode == "RGB"
        assert image.tobytes() == sample_image().tobytes()


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "GIF"])
def test_a_lossy_file_gives_what_pillow_decodes(kind):
    data = encoded(sample_image(), kind)
    assert load_image(data).tobytes() == Image.open(io.BytesIO(data)).convert("RGB").tobytes()


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK"])
def test_other_color_modes_are_converted_as_pillow_does(mode):
    image = sample_image().convert(mode)
    kind = "TIFF" if mode == "CMYK" else "PNG"
    assert load_image(encoded(image, kind)).tobytes() == image.convert("RGB").tobytes()


def test_an_animation_gives_its_first_frame():
    first, second = Image.new("RGB", (9, 9), "red"), Image.new("RGB", (9, 9), "blue")
    data = encoded(first, "GIF", save_all=True, append_images=[second])
    assert load_image(data).getpixel((4, 4)) == (255, 0, 0)


def test_a_missing_file_is_named():
    with pytest.raises(InputError, match=r"(?s)cannot be read.*no/such\.png.*No such file"):
        load_image("no/such.png")


def test_a_folder_a_pipe_and_a_device_are_no_images(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("/dev/zero")
    for path, kind in ((tmp_path, "folder"), (tmp_path / "pipe", "named pipe"), (tmp_path / "link", "device")):
        with pytest.raises(InputError, match=rf"(?s)cannot be read.*a {kind} and not a regular file"):
            load_image(path)


def test_a_name_with_a_null_byte_is_refused():
    with pytest.raises(InputError, match="cannot be read"):
        load_image("a\0b.png")


@pytest.mark.parametrize(
    "content", [b"", b"not an image", b"<svg/>", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"]
)
def test_a_file_that_is_no_image_is_refused(content, tmp_path):
    file = tmp_path / "notes.png"
    file.write_bytes(content)
    with pytest.raises(InputError, match=r"(?s)not an image.*notes\.png.*PNG.*found.*fix"):
        load_image(file)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_a_truncated_file_is_refused(kind):
    data = encoded(sample_image(64, 64), kind)
    with pytest.raises(InputError, match=r"(?s)damaged or cut off.*fix: +copy or download it again"):
        load_image(data[: len(data) * 2 // 3])


@settings(max_examples=100)
@given(
    st.sampled_from(["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"]),
    st.integers(0, 10_000),
    st.binary(min_size=1, max_size=8),
)
def test_damaged_bytes_give_a_image_or_an_input_error(kind, position, garbage):
    data = bytearray(encoded(sample_image(), kind))
    position %= len(data)
    data[position : position + len(garbage)] = garbage
    with warnings.catch_warnings(), contextlib.suppress(InputError):
        warnings.simplefilter("ignore")  # Pillow warns of odd metadata.
        assert load_image(bytes(data)).mode == "RGB"


def png(width: int, height: int, depth: int, rows: bytes) -> bytes:
    """An RGB PNG, written by hand, of any claimed size and depth."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_sixteen_bit_color_keeps_its_upper_bytes():
    samples = struct.pack(">6H", 0x12FF, 0xAB00, 0xFFFF, 0x0001, 0x0100, 0x7F80)
    image = load_image(png(2, 1, 16, b"\0" + samples))
    assert [image.getpixel((x, 0)) for x in (0, 1)] == [(0x12, 0xAB, 0xFF), (0x00, 0x01, 0x7F)]


@pytest.mark.parametrize("size", [(8_001, 10_000), (10_000, 9_000), (50_000, 50_000)])
def test_a_decompression_bomb_is_refused_before_it_is_decoded(size):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        with pytest.raises(InputError, match=r"(?s)too large.*80 megapixels"):
            load_image(png(*size, 8, b"\0" * 100))


def test_an_image_at_the_pixel_limit_is_read():
    load_image(encoded(sample_image(20, 12), "PNG"), max_pixels=20 * 12)
    with pytest.raises(InputError, match="too large"):
        load_image(encoded(sample_image(20, 13), "PNG"), max_pixels=20 * 12)


@pytest.mark.parametrize("size", [(65_536, 1), (1, 80_000_000)])
def test_a_side_over_the_limit_is_refused_before_it_is_decoded(size):
    with pytest.raises(InputError, match=r"(?s)too large.*65535 pixels on a side.*found"):
        load_image(png(*size, 8, b"\0" * 100))


@pytest.mark.parametrize("size", [(0, 5), (5, 0)])
def test_a_image_without_pixels_is_refused(size):
    with pytest.raises(InputError):
        load_image(png(*size, 8, b"\0" * 100))
