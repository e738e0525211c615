"""Videos as frames: numbered as the published code does, one tile each."""

from __future__ import annotations

import importlib.util
import io
import struct
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

from r1v_export.errors import CapabilityError, InputError
from r1v_export.model_spec import TilingSpec
from r1v_export.processing import video
from r1v_export.processing.preprocess import normalize, pixel_values
from r1v_export.processing.video import frame_indices, load_frames, with_frame_placeholders

TILE = 28
TILING = TilingSpec(tile_size=TILE, min_tiles=1, max_tiles=12, use_thumbnail=True, dynamic=True)


def published_indices(fps: float, max_frame: int, num_segments: int) -> list[int]:
    """`get_index` of the InternVL model cards, without a bound."""
    start, end = -100000, 100000
    start_idx = max(0, round(start * fps))
    end_idx = min(round(end * fps), max_frame)
    seg_size = float(end_idx - start_idx) / num_segments
    return [int(start_idx + (seg_size / 2) + np.round(seg_size * idx)) for idx in range(num_segments)]


@pytest.mark.parametrize("total", [1, 2, 7, 8, 9, 100, 1001])
@pytest.mark.parametrize("count", [1, 2, 8, 32])
def test_the_frames_are_those_of_the_published_code(total, count):
    assert frame_indices(total, count) == published_indices(25.0, total - 1, count)


def test_each_frame_has_a_numbered_placeholder():
    text = with_frame_placeholders("What happens?", 3)
    assert text == "Frame1: <image>\nFrame2: <image>\nFrame3: <image>\nWhat happens?"
    with pytest.raises(InputError, match="places no images itself"):
        with_frame_placeholders("Is <image> red?", 2)


def moving(count: int = 10) -> list[Image.Image]:
    """Frames that differ in every pixel."""
    return [Image.new("RGB", (60, 20), (25 * index, 255 - 25 * index, 90)) for index in range(count)]


def animation(kind: str, frames: list[Image.Image], **options: object) -> bytes:
    buffer = io.BytesIO()
    exact = {"lossless": True} if kind == "WEBP" else {}
    frames[0].save(buffer, kind, save_all=True, append_images=frames[1:], duration=40, **exact, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
def test_frames_of_an_animation_become_one_tile_each(kind, tmp_path):
    frames = moving()
    (tmp_path / "animation").write_bytes(animation(kind, frames))
    loaded = load_frames(tmp_path / "animation", 4, TILE)
    pixels, tiles_per_image = pixel_values(loaded, TILING, "as_displayed")
    assert tiles_per_image == [1, 1, 1, 1]
    expected = [frames[index].resize((TILE, TILE)) for index in published_indices(25.0, 9, 4)]
    np.testing.assert_allclose(pixels, normalize(expected), atol=0.03 if kind == "GIF" else 0)


def test_the_default_image_of_an_apng_that_is_no_frame_is_omitted(tmp_path):
    still, *frames = moving(5)
    (tmp_path / "a.png").write_bytes(animation("PNG", [still, *frames], default_image=True))
    loaded = load_frames(tmp_path / "a.png", 2, TILE)
    expected = [frames[index] for index in published_indices(25.0, 3, 2)]
    assert [frame.getpixel((0, 0)) for frame in loaded] == [frame.getpixel((0, 0)) for frame in expected]


def test_a_gif_that_changes_a_part_only_is_drawn_over_what_was_there(tmp_path):
    first = Image.new("RGB", (40, 40), "red")
    second = first.copy()
    second.paste("blue", (10, 10, 20, 20))
    (tmp_path / "a.gif").write_bytes(animation("GIF", [first, second]))
    last = load_frames(tmp_path / "a.gif", 4, 40)[-1]
    assert last.getpixel((2, 2)) == (255, 0, 0)
    assert last.getpixel((15, 15)) == (0, 0, 255)


def test_a_still_image_is_no_video(tmp_path):
    moving()[0].save(tmp_path / "a.png")
    with pytest.raises(InputError, match=r"(?s)still image.*--image"):
        load_frames(tmp_path / "a.png", 2, TILE)


def test_what_is_no_file_is_refused(tmp_path):
    for path in (tmp_path, tmp_path / "none", "/dev/zero"):
        with pytest.raises(InputError, match=r"(?s)cannot be read.*fix:      check the path"):
            load_frames(path, 2, TILE)


def test_an_animation_that_is_cut_off_says_what_to_do(tmp_path):
    frames = moving()
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    whole = (tmp_path / "a.gif").read_bytes()
    (tmp_path / "cut.gif").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"(?s)cut\.gif.*truncated.*fix:      copy or download it again"):
        load_frames(tmp_path / "cut.gif", 8, TILE)


MPEG_HEADER = b"\0\0\1\xb3\x14\0\xf0\x13"
"""Of a video stream of 320 x 240; Pillow opens it as an image that it cannot decode."""


@pytest.mark.parametrize("head", [b"\0\0\0\x18ftypmp42", MPEG_HEADER])
def test_a_video_file_without_pyav_says_what_to_install(tmp_path, monkeypatch, head):
    monkeypatch.setattr(video.importlib.util, "find_spec", lambda name: None)
    (tmp_path / "a.mp4").write_bytes(head)
    with pytest.raises(CapabilityError, match=r"(?s)PyAV.*pip install .av>=14"):
        load_frames(tmp_path / "a.mp4", 2, TILE)


needs_pyav = pytest.mark.skipif(importlib.util.find_spec("av") is None, reason="PyAV is not installed")


def encoded(container: str, codec: str, frames: list[Image.Image]) -> bytes:
    import av

    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as output:
        stream = output.add_stream(codec, rate=Fraction(25))
        stream.width, stream.height, stream.pix_fmt = *frames[0].size, "yuv420p"
        for frame in frames:
            output.mux(stream.encode(av.VideoFrame.from_image(frame)))
        output.mux(stream.encode())
    return buffer.getvalue()


@needs_pyav
@pytest.mark.parametrize(("container", "codec"), [("mp4", "mpeg4"), ("matroska", "mpeg4"), ("avi", "mpeg4")])
def test_frames_of_a_video_file_are_the_ones_that_were_encoded(container, codec, tmp_path):
    frames = moving(30 // 3)
    (tmp_path / "video").write_bytes(encoded(container, codec, frames))
    loaded = load_frames(tmp_path / "video", 4, TILE)
    expected = [frames[index].getpixel((0, 0)) for index in published_indices(25.0, 9, 4)]
    np.testing.assert_allclose([frame.getpixel((9, 9)) for frame in loaded], expected, atol=8)
    assert {frame.size for frame in loaded} == {(TILE, TILE)}


@needs_pyav
def test_a_text_is_no_video_and_the_cause_is_in_words(tmp_path):
    (tmp_path / "text.mp4").write_text("hello\n")
    with pytest.raises(InputError) as error:
        load_frames(tmp_path / "text.mp4", 2, TILE)
    assert str(error.value.found) == "Invalid data found when processing input"
    assert "MP4" in str(error.value.expected)
    assert "save it as MP4" in str(error.value.fix)


@needs_pyav
@pytest.mark.parametrize("playlist", [b"#EXTM3U\nhttp://127.0.0.1:1/a.ts\n", b"ffconcat version 1.0\nfile a.mp4\n"])
def test_a_playlist_is_no_video(playlist, tmp_path):
    (tmp_path / "a.m3u8").write_bytes(playlist)
    with pytest.raises(InputError, match="damaged or of an unknown format"):
        load_frames(tmp_path / "a.m3u8", 2, TILE)


@needs_pyav
def test_a_damaged_video_file_is_one_error(tmp_path):
    (tmp_path / "a.mp4").write_bytes(encoded("mp4", "mpeg4", moving())[:-200])
    with pytest.raises(InputError, match=r"(?s)^The video is damaged or cut off.*copy or download it again"):
        load_frames(tmp_path / "a.mp4", 2, TILE)


@needs_pyav
@pytest.mark.parametrize("cut", [1, 4, 9])
def test_frames_that_a_trimmed_video_hides_are_not_counted(cut, tmp_path):
    frames = moving(10)
    stored = encoded("mp4", "libx264", frames)  # one key frame, so that the hidden frames have to be decoded
    place = stored.index(b"elst") + 4 + 8  # behind the name, version, flags and number of entries
    duration, start = struct.unpack_from(">Ii", stored, place)
    scale = struct.unpack_from(">I", stored, stored.index(b"mdhd") + 4 + 12)[0]
    trimmed = struct.pack(">Ii", duration * (10 - cut) // 10, start + cut * scale // 25)
    (tmp_path / "a.mp4").write_bytes(stored[:place] + trimmed + stored[place + 8 :])
    loaded = load_frames(tmp_path / "a.mp4", 3, TILE)
    expected = [frames[cut + index].getpixel((0, 0)) for index in published_indices(25.0, 9 - cut, 3)]
    np.testing.assert_allclose([frame.getpixel((9, 9)) for frame in loaded], expected, atol=8)


IDENTITY = (0x10000, 0, 0, 0, 0x10000, 0, 0, 0, 0x40000000)
CLOCKWISE = (0, 0x10000, 0, -0x10000, 0, 0, 0, 0, 0x40000000)
"""QuickTime's track matrix for a quarter turn: what lay right comes to lie below."""


@needs_pyav
@pytest.mark.parametrize(("policy", "below"), [("as_displayed", "blue"), ("published", "red")])
def test_a_phones_video_is_turned_as_its_track_says(policy, below, tmp_path):
    frame = Image.new("RGB", (64, 64), "red")
    frame.paste("blue", (32, 0, 64, 64))
    stored = encoded("mp4", "mpeg4", [frame] * 4)
    head, track = stored.split(b"tkhd", 1)
    turned = track.replace(struct.pack(">9i", *IDENTITY), struct.pack(">9i", *CLOCKWISE), 1)
    assert turned != track
    (tmp_path / "a.mp4").write_bytes(head + b"tkhd" + turned)
    shown = load_frames(tmp_path / "a.mp4", 1, 64, policy)[0]
    expected = {"blue": (0, 0, 255), "red": (255, 0, 0)}[below]
    np.testing.assert_allclose(shown.getpixel((16, 56)), expected, atol=40)
