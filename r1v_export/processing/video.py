"""Videos become frames and a question with a placeholder for each, as InternVL's published code numbers them.

Every frame is one tile, as with `max_num=1` there. Source: `get_index` and `load_video` of the InternVL model cards.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError

from r1v_export.config import ImagePolicy
from r1v_export.errors import CapabilityError, InputError, R1VError
from r1v_export.files import open_regular
from r1v_export.processing.image_policy import to_rgb
from r1v_export.processing.image_size import require_size
from r1v_export.processing.load_image import FORMATS, check_size
from r1v_export.processing.prompt import IMAGE_PLACEHOLDER

DEFAULT_FRAMES = 8
MAX_FRAMES = 1_000_000
"""Longest video, in frames."""

_ANIMATED = ("GIF", "WEBP", "PNG")
_COPY_AGAIN = "copy or download it again, or open it in a video player and save it as MP4"

# FFmpeg also reads playlists and scripts, which open further files and addresses.
_CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,flv,ogg"


def frame_indices(total: int, count: int) -> list[int]:
    """The frames in the middles of `count` equal stretches; a short video gives some of them several times."""
    stretch = (total - 1) / count
    return [int(stretch / 2 + np.round(stretch * index)) for index in range(count)]


def with_frame_placeholders(question: str, count: int) -> str:
    """The question behind a numbered placeholder for each frame.

    Raises:
        InputError: the question has placeholders of its own.
    """
    if IMAGE_PLACEHOLDER in question:
        raise InputError("A question about a video places no images itself.", found=IMAGE_PLACEHOLDER, fix="remove it")
    return "".join(f"Frame{number}: {IMAGE_PLACEHOLDER}\n" for number in range(1, count + 1)) + question


def load_frames(
    path: str | Path, count: int, tile_size: int, policy: ImagePolicy = "as_displayed"
) -> list[Image.Image]:
    """`count` frames of a video, each RGB, `tile_size` wide and high: one tile each.

    Args:
        path: an animated GIF, WebP or PNG, which Pillow decodes, or a video file, for which PyAV must be installed.
        policy: how frames become RGB; `as_displayed` also applies the rotation of a phone's video.

    Raises:
        InputError: missing, no regular file, damaged, too large, or no video.
        CapabilityError: a video file, and PyAV is not installed.
    """
    try:
        with open_regular(path) as file:
            return [frame.resize((tile_size, tile_size)) for frame in _frames(file, count, policy, path)]
    except R1VError:
        raise
    except OSError as error:
        fix = "check the path" if error.errno else _COPY_AGAIN  # Pillow's own, of a file that is cut off, has no number
        found = error.strerror or error
        raise InputError("The video cannot be read.", where=path, found=found, fix=fix) from error
    except Exception as error:  # Pillow and FFmpeg answer damaged data with a dozen kinds of exception.
        cause = getattr(error, "strerror", None) or error
        raise InputError(
            "The video is damaged or of an unknown format.",
            where=path,
            expected="a video such as MP4, MOV, MKV, WebM or AVI, or an animated GIF, WebP or PNG",
            found=cause,
            fix=_COPY_AGAIN,
        ) from error


def _frames(file: BinaryIO, count: int, policy: ImagePolicy, where: object) -> Iterator[Image.Image]:
    try:
        image = Image.open(file, formats=FORMATS)
    except UnidentifiedImageError:
        file.seek(0)
        yield from _from_pyav(file, count, policy, where)
        return
    with image:
        if image.format not in _ANIMATED or getattr(image, "n_frames", 1) == 1:
            fix = "give it as --image"
            raise InputError("This is a still image and no video.", where=where, found=image.format, fix=fix)
        check_size(image, where)
        first = 1 if getattr(image, "default_image", False) else 0
        for index in frame_indices(_limited(image.n_frames - first, where), count):  # type: ignore[attr-defined]
            image.seek(first + index)
            yield to_rgb(image, policy, where)


def _from_pyav(file: BinaryIO, count: int, policy: ImagePolicy, where: object) -> Iterator[Image.Image]:
    if importlib.util.find_spec("av") is None:
        raise CapabilityError(
            "Reading a video file needs a package that is not installed.",
            where=where,
            expected="PyAV",
            fix="pip install 'av>=14', or give an animated GIF, WebP or PNG",
        )
    import av

    with av.open(file, options={"format_whitelist": _CONTAINERS}) as container:
        stream = next(iter(container.streams.video), None)
        if stream is None:
            raise InputError(
                "The file has no video stream.", where=where, fix="give a file that has one, not sound alone"
            )
        width, height = stream.codec_context.width, stream.codec_context.height
        if not width or not height:  # FFmpeg opens a file without its index, and knows nothing of its frames
            found = f"frames of {width} x {height} pixels"
            raise InputError("The video is damaged or cut off.", where=where, found=found, fix=_COPY_AGAIN)
        require_size(width, height, where)
        # An edit list, as of a trimmed phone video, marks packets whose frames the decoder drops.
        shown = sum(1 for packet in container.demux(stream) if packet.size and not packet.is_discard)
        total = _limited(shown, where)
        container.seek(0)
        yield from _decoded(container, stream, frame_indices(total, count), policy, where)


def _decoded(
    container: Any, stream: Any, wanted: Sequence[int], policy: ImagePolicy, where: object
) -> Iterator[Image.Image]:
    position = 0
    for index, frame in enumerate(container.decode(stream)):
        if index != wanted[position]:
            continue
        image = to_rgb(frame.to_image(), policy, where)
        if policy == "as_displayed" and frame.rotation:
            image = image.rotate(frame.rotation, expand=True)
        while position < len(wanted) and wanted[position] == index:
            yield image
            position += 1
        if position == len(wanted):
            return
    expected = f"frame {wanted[position]}"
    raise InputError("The video is damaged or cut off.", where=where, expected=expected, fix=_COPY_AGAIN)


def _limited(total: int, where: object) -> int:
    if not 0 < total <= MAX_FRAMES:
        expected, fix = f"1 to {MAX_FRAMES}", "name another file, or cut it into parts"
        raise InputError("The video has no frames, or too many.", where=where, expected=expected, found=total, fix=fix)
    return total
