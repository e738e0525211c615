"""What a server allows and where it listens."""

from __future__ import annotations

from dataclasses import dataclass, field

from r1v_export.processing.image_size import MAX_PIXELS


@dataclass(frozen=True)
class Limits:
    """The most that one request may ask for. What is beyond is refused with an error that names the limit.

    Attributes:
        body_bytes: of a request's body; a data URL takes 4 bytes for 3 of its image.
        images: in all messages together.
        image_pixels: of one image, width times height.
        new_tokens: of an answer; None leaves it to the model's context.
        seconds: from a request's arrival to the end of its answer.
        body_seconds: between two pieces of a request's body.
    """

    body_bytes: int = 64 << 20
    images: int = 16
    image_pixels: int = MAX_PIXELS
    new_tokens: int | None = None
    seconds: float = 600.0
    body_seconds: float = 30.0


@dataclass(frozen=True)
class ServerSettings:
    """How a bundle is served.

    Attributes:
        model: name by which clients ask for it.
        api_keys: one of them must be sent as a bearer token; without any, everybody is let in.
        image_hosts: hosts from which images are fetched; none unless named.
    """

    model: str
    api_keys: tuple[str, ...] = ()
    image_hosts: tuple[str, ...] = ()
    limits: Limits = field(default_factory=Limits)
