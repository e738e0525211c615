"""Images as a viewer shows them, against Pillow's ImageOps and numpy; and as the published code reads them."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

from r1v_export.errors import InputError
from r1v_export.processing.load_image import load_image

ORIENTATION = 0x0112
ORIENTATIONS = range(1, 9)


def sample_image(width: int = 20, height: int = 12, channels: int = 3) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8))


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def oriented(kind: str, orientation: int) -> bytes:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    options = {"lossless": True} if kind == "WEBP" else {}
    return encoded(sample_image(), kind, exif=exif, **options)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_the_orientation_is_applied_as_imageops_does(kind, orientation):
    data = oriented(kind, orientation)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    assert load_image(data).tobytes() == expected.tobytes()
    assert load_image(data).size == ((12, 20) if orientation >= 5 else (20, 12))


def test_orientation_6_turns_the_stored_rows_clockwise():
    stored, shown = np.asarray(sample_image()), np.asarray(load_image(oriented("PNG", 6)))
    np.testing.assert_array_equal(shown, np.rot90(stored, k=-1))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_the_published_policy_applies_no_orientation(kind):
    data = oriented(kind, 6)
    image = load_image(data, "published")
    assert image.tobytes() == Image.open(io.BytesIO(data)).convert("RGB").tobytes()
    assert image.size == (20, 12)


@pytest.mark.parametrize("exif", [b"Exif\0\0garbage", b"Exif\0\0MM\0*\xff\xff\xff\xff", b"Exif\0\0"])
def test_damaged_exif_leaves_the_image_as_stored(exif):
    assert load_image(encoded(sample_image(), "JPEG", exif=exif)).size == (20, 12)


def test_a_loaded_image_is_turned_once_only(tmp_path):
    once = load_image(oriented("PNG", 6))
    once.save(tmp_path / "again.png")
    assert load_image(tmp_path / "again.png").tobytes() == once.tobytes()


def on_white(rgba: np.ndarray) -> np.ndarray:
    """The definition of compositing, in float."""
    alpha = rgba[..., 3:].astype(float) / 255
    return rgba[..., :3] * alpha + 255 * (1 - alpha)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_transparency_is_composed_on_white(kind):
    rgba = sample_image(channels=4)
    data = encoded(rgba, kind, **({"lossless": True, "exact": True} if kind == "WEBP" else {}))
    np.testing.assert_allclose(np.asarray(load_image(data)), on_white(np.asarray(rgba)), atol=1)
    assert load_image(data, "published").tobytes() == rgba.convert("RGB").tobytes()


def test_gray_with_alpha_is_composed_on_white():
    gray = sample_image(channels=2)
    assert gray.mode == "LA"
    expected = on_white(np.asarray(gray.convert("RGBA")))
    np.testing.assert_allclose(np.asarray(load_image(encoded(gray, "PNG"))), expected, atol=1)


def test_colors_multiplied_by_their_alpha_are_divided_again():
    from r1v_export.processing.image_policy import to_rgb

    rgba = sample_image(channels=4)
    shown = np.asarray(to_rgb(rgba.convert("RGBa"), "as_displayed", "image")).astype(float)
    np.testing.assert_allclose(shown, on_white(np.asarray(rgba)), atol=2)
    gray = Image.fromarray(np.array([[[100, 255], [60, 120], [0, 0]]], np.uint8))
    shown = np.asarray(to_rgb(gray.convert("La"), "as_displayed", "image")).astype(float)
    np.testing.assert_allclose(shown, on_white(np.asarray(gray.convert("RGBA"))), atol=2)


def paletted() -> Image.Image:
    image = Image.new("P", (3, 1))
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    image.putdata([0, 1, 2])
    return image


@pytest.mark.parametrize(
    ("transparency", "shown"),
    [
        (1, [(10, 20, 30), (255, 255, 255), (70, 80, 90)]),
        (b"\x00\xff\x80", [(255, 255, 255), (40, 50, 60), (162, 167, 172)]),
    ],
    ids=["index", "bytes"],
)
def test_transparent_palette_entries_are_white(transparency, shown):
    image = load_image(encoded(paletted(), "PNG", transparency=transparency))
    np.testing.assert_allclose([image.getpixel((x, 0)) for x in range(3)], shown, atol=1)


def test_a_transparent_index_of_a_gif_is_white():
    image = load_image(encoded(paletted(), "GIF", transparency=2))
    assert [image.getpixel((x, 0)) for x in range(3)] == [(10, 20, 30), (40, 50, 60), (255, 255, 255)]


def png(depth: int, color_type: int, width: int, row: bytes, key: bytes | None = None) -> bytes:
    """A PNG of one row, written by hand: Pillow writes few of the depths that it reads."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, 1, depth, color_type, 0, 0, 0))
    transparent = chunk(b"tRNS", key) if key else b""
    data = chunk(b"IDAT", zlib.compress(b"\0" + row))
    return b"\x89PNG\r\n\x1a\n" + header + transparent + data + chunk(b"IEND", b"")


GRAY, COLOR = 0, 2


@pytest.mark.parametrize(
    ("depth", "row", "shown"),
    [
        (1, b"\x40", [0, 255]),  # samples 0, 1; the second is transparent, the first is black
        (2, b"\x10", [0, 255]),
        (4, b"\x01", [0, 255]),
        (8, b"\x00\x01", [0, 255]),
        (16, b"\x00\x00\x00\x01", [0, 255]),
    ],
)
def test_the_transparent_gray_of_a_png_is_white_at_every_depth(depth, row, shown):
    image = load_image(png(depth, GRAY, 2, row, key=b"\x00\x01"))
    assert [image.getpixel((x, 0)) for x in range(2)] == [(value,) * 3 for value in shown]


def test_the_transparent_color_of_a_png_is_white():
    image = load_image(png(8, COLOR, 2, bytes([1, 2, 3, 1, 2, 4]), key=bytes([0, 1, 0, 2, 0, 3])))
    assert [image.getpixel((x, 0)) for x in range(2)] == [(255, 255, 255), (1, 2, 4)]


def test_a_transparent_color_of_sixteen_bits_is_refused():
    with pytest.raises(InputError, match=r"(?s)unsupported kind.*transparent color"):
        load_image(png(16, COLOR, 1, bytes(6), key=bytes(6)))


SIXTEEN_BITS = np.array([[0x0000, 0x00FF, 0x0100, 0x7FFF, 0xFFFF]], np.uint16)
UPPER_BYTES = [0x00, 0x00, 0x01, 0x7F, 0xFF]


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bit_gray_keeps_its_upper_bytes_as_sixteen_bit_color_does(kind):
    gray = load_image(encoded(Image.fromarray(SIXTEEN_BITS), kind))
    assert [gray.getpixel((x, 0)) for x in range(5)] == [(value,) * 3 for value in UPPER_BYTES]
    color = load_image(png(16, COLOR, 5, np.repeat(SIXTEEN_BITS[0], 3).astype(">u2").tobytes()))
    assert color.tobytes() == gray.tobytes()


def test_a_tiff_whose_white_is_zero_is_inverted():
    data = encoded(Image.fromarray(SIXTEEN_BITS), "TIFF", tiffinfo={262: 0})
    image = load_image(data)
    assert [image.getpixel((x, 0))[0] for x in range(5)] == [255 - value for value in UPPER_BYTES]


@pytest.mark.parametrize("mode", ["I", "F", "LAB"])
@pytest.mark.parametrize("policy", ["as_displayed", "published"])
def test_samples_without_a_range_are_refused(mode, policy):
    data = encoded(Image.new(mode, (4, 4)), "TIFF")
    with pytest.raises(InputError, match="unsupported kind") as caught:
        load_image(data, policy)
    assert f"mode {mode}" in str(caught.value)


def test_the_published_policy_refuses_gray_that_pillow_would_clip_to_white():
    with pytest.raises(InputError, match=r"(?s)unsupported kind.*I;16.*as_displayed"):
        load_image(encoded(Image.fromarray(SIXTEEN_BITS), "TIFF"), "published")


def test_a_jpeg_in_cmyk_is_converted_as_pillow_does():
    data = encoded(Image.new("CMYK", (8, 8), (255, 0, 0, 0)), "JPEG", quality=100)
    assert load_image(data).tobytes() == Image.open(io.BytesIO(data)).convert("RGB").tobytes()
    assert load_image(data).getpixel((4, 4)) == (0, 255, 255)


RED, BLUE = (255, 0, 0), (0, 0, 255)


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
def test_an_animation_shows_its_first_frame(kind):
    frames = [Image.new("RGB", (9, 9), color) for color in (RED, BLUE)]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], disposal=2, **options)
    assert load_image(data).getpixel((4, 4)) == RED


def test_an_apng_whose_default_image_is_no_frame_shows_its_first_frame():
    still, first = (Image.new("RGB", (9, 9), color) for color in (RED, BLUE))
    data = encoded(still, "PNG", save_all=True, default_image=True, append_images=[first, still])
    assert load_image(data).getpixel((4, 4)) == BLUE
    assert load_image(data, "published").getpixel((4, 4)) == RED


def test_around_a_first_frame_that_is_smaller_than_its_gif_is_white():
    data = bytearray(encoded(Image.new("P", (2, 2), 0), "GIF"))
    data[6:10] = struct.pack("<HH", 4, 4)  # the canvas; the frame stays 2 x 2
    image = load_image(bytes(data))
    assert image.getpixel((0, 0)) == (0, 0, 0)
    assert image.getpixel((3, 3)) == (255, 255, 255)
