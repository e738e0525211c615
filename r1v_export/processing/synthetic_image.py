"""An image for measurements and comparisons that need one and have none."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFilter


def synthetic_image(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """A color gradient with figures on it, half of it under noise; RGB, the same on every machine for the same `rng`.

    Args:
        width, height: in pixels.
    """
    corners = rng.integers(0, 256, (2, 2, 3), dtype=np.uint8)
    image = Image.fromarray(corners).resize((width, height), Image.Resampling.BILINEAR)
    draw = ImageDraw.Draw(image)
    for figure in (draw.ellipse, draw.rectangle, draw.ellipse):
        left, top = rng.uniform(0, 0.7, 2) * (width, height)
        endpoint = rng.uniform(0.1, 0.3) * min(width, height)
        figure((left, top, left + endpoint, top + endpoint), fill=tuple(int(c) for c in rng.integers(0, 256, 3)))
    noise = Image.fromarray(rng.integers(0, 256, (height, width // 2, 3), dtype=np.uint8))
    right_half = image.crop((width - width // 2, 0, width, height))
    blended = Image.blend(right_half, noise.filter(ImageFilter.BoxBlur(1)), 0.4)
    image.paste(blended, (width - width // 2, 0))
    return image
