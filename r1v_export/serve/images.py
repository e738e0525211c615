"""Images of a request: data URLs, and http(s) from hosts that the server allows. Files are never read."""

from __future__ import annotations

from PIL import Image

from r1v_export.config import ImagePolicy
from r1v_export.errors import InputError
from r1v_export.processing.image_source import fetch, read_data_url
from r1v_export.processing.load_image import load_image
from r1v_export.serve.settings import ServerSettings

ENCODED = "r1v_encoded"
"""Key of an image's `info`: the file that it was read from, for whoever passes it on to another server."""


def load_request_image(url: str, policy: ImagePolicy, settings: ServerSettings) -> Image.Image:
    """Read an image that a client named; a redirect is followed to an allowed host only.

    Raises:
        InputError: a URL of another kind or host, or an image that cannot be used.
    """
    scheme = url.partition(":")[0].lower()
    if scheme == "data":
        content = read_data_url(url)
    elif scheme in ("http", "https") and settings.image_hosts:
        content = fetch(url, settings.image_hosts)
    else:
        hosts = ", or an http(s) URL of " + ", ".join(settings.image_hosts) if settings.image_hosts else ""
        fix = "send the image itself as a data: URL, or start the server with --allow-image-host HOST"
        raise InputError("An image's URL cannot be used.", expected=f"a data: URL{hosts}", found=url[:80], fix=fix)
    image = load_image(content, policy, max_pixels=settings.limits.image_pixels)
    image.info[ENCODED] = content
    return image
