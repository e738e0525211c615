"""From images to their embeddings: tiles of several images together, and each image once.

Shape letters: T tiles, S tile size, N image tokens of an image, E hidden size.
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter, OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from r1v_export.config import ImagePolicy
from r1v_export.contract import VisionEngine
from r1v_export.errors import GraphError, R1VError
from r1v_export.generation import EncodedImage
from r1v_export.model_spec import TilingSpec
from r1v_export.runner.finite import require_finite

if TYPE_CHECKING:
    from PIL import Image


class ImageCache:
    """Encoded images by their digests; those that were not asked for the longest go first.

    Args:
        budget_bytes: of all embeddings together.
    """

    def __init__(self, budget_bytes: int) -> None:
        self.budget_bytes, self.bytes = budget_bytes, 0
        self._images: OrderedDict[bytes, tuple[int, EncodedImage]] = OrderedDict()

    def get(self, digest: bytes) -> tuple[int, EncodedImage] | None:
        """An image's number of tiles, and itself; None if it is not here."""
        found = self._images.get(digest)
        if found is not None:
            self._images.move_to_end(digest)
        return found

    def put(self, tiles: int, image: EncodedImage) -> None:
        """Keep an image, unless it alone is beyond the budget."""
        if image.embeds.nbytes > self.budget_bytes or image.digest in self._images:
            return
        self._images[image.digest] = tiles, image
        self.bytes += image.embeds.nbytes
        while self.bytes > self.budget_bytes:
            _, (_, oldest) = self._images.popitem(last=False)
            self.bytes -= oldest.embeds.nbytes


@dataclass
class ImageJob:
    """An image on its way through the encoder.

    Attributes:
        digest: SHA-256 of its size and RGB pixels.
        tiles: how many it is cut into.
        pixels: the tiles [T, 3, S, S] that are not encoded yet.
        vision_ms, projector_ms: what the runs took that its tiles were part of.
        users: how often it was opened.
    """

    digest: bytes
    tiles: int
    pixels: np.ndarray | None = None
    encoded: EncodedImage | None = None
    error: R1VError | None = None
    vision_ms: float = 0.0
    projector_ms: float = 0.0
    users: int = 1
    parts: list[np.ndarray] = field(default_factory=list)

    @property
    def done(self) -> bool:
        """Whether it is encoded, or cannot be."""
        return self.encoded is not None or self.error is not None

    def result(self) -> EncodedImage:
        """The encoded image, once it is done.

        Raises:
            GraphError: a stage gave numbers that are not finite, or failed.
        """
        if self.error is not None:
            raise self.error
        assert self.encoded is not None
        return self.encoded


class ImageEncoder:
    """Encodes images, a few tiles at a time: those of several images together, and no image twice.

    Not safe to share between threads, but `cache` and the counters may be read from any.

    Args:
        vision: encodes tiles.
        tiling, policy: how images are cut and become RGB.
        tiles_per_run: tiles that go through the vision graph together.
        cache_bytes: of embeddings that are kept for images shown again: this encoder's, so of one vision graph.
    """

    def __init__(
        self, vision: VisionEngine, tiling: TilingSpec, policy: ImagePolicy, tiles_per_run: int, cache_bytes: int = 0
    ) -> None:
        self.vision, self.tiling, self.policy, self.tiles_per_run = vision, tiling, policy, tiles_per_run
        self.cache = ImageCache(cache_bytes)
        self.hits = self.misses = 0
        self.tiles_per_batch: Counter[int] = Counter()
        self._pending: OrderedDict[bytes, ImageJob] = OrderedDict()

    @property
    def waiting(self) -> int:
        """Tiles that wait to be encoded."""
        return sum(len(job.pixels) for job in self._pending.values() if job.pixels is not None)

    def open(self, image: Image.Image) -> ImageJob:
        """Begin to encode an image; done already if it is kept, the same job as before if it is under way.

        Raises:
            InputError: the image cannot be used.
        """
        # Pillow takes time and memory that a question without an image has no use for.
        from r1v_export.processing.preprocess import pixel_values, rgb_image

        rgb = rgb_image(image, self.policy)
        digest = hashlib.sha256(repr(rgb.size).encode() + rgb.tobytes()).digest()
        found, pending = self.cache.get(digest), self._pending.get(digest)
        if found is not None or pending is not None:
            self.hits += 1
        if found is not None:
            return ImageJob(digest, found[0], encoded=found[1])
        if pending is not None:
            pending.users += 1
            return pending
        self.misses += 1
        pixels_T3SS, (tiles,) = pixel_values([rgb], self.tiling, self.policy)
        job = self._pending[digest] = ImageJob(digest, tiles, pixels_T3SS)
        return job

    def abandon(self, jobs: Iterable[ImageJob]) -> None:
        """Give up jobs that somebody opened; one that others opened too goes on for them."""
        for job in jobs:
            job.users -= 1
            if job.users == 0 and self._pending.get(job.digest) is job:
                del self._pending[job.digest]

    def run_batch(self) -> None:
        """Encode the next tiles of the images that wait, the oldest first. Errors are the images' own."""
        shares: list[tuple[ImageJob, np.ndarray]] = []
        room = self.tiles_per_run
        for job in self._pending.values():
            if not room:
                break
            assert job.pixels is not None
            pixels_T3SS, job.pixels = job.pixels[:room], job.pixels[room:]
            shares.append((job, pixels_T3SS))
            room -= len(pixels_T3SS)
        if not shares:
            return
        self.tiles_per_batch[self.tiles_per_run - room] += 1
        try:
            self._encode(shares)
        except R1VError as error:
            for job, _ in shares:
                job.error = job.error or error
        except Exception as error:
            for job, _ in shares:
                job.error = GraphError("Encoding an image failed.", where="vision", found=repr(error))
            raise
        finally:
            for job, _ in shares:
                self._finish(job)

    def _encode(self, shares: list[tuple[ImageJob, np.ndarray]]) -> None:
        jobs, clock = [job for job, _ in shares], time.perf_counter()
        ends = np.cumsum([len(pixels_T3SS) for _, pixels_T3SS in shares])[:-1]
        features = self.vision.vision(_joined([pixels_T3SS for _, pixels_T3SS in shares]))
        for job, part in zip(jobs, np.split(features, ends), strict=True):
            _check(job, part, "vision")
        vision_ms, clock = (time.perf_counter() - clock) * 1000, time.perf_counter()
        embeds_TNE = self.vision.projector(features)
        for job, part in zip(jobs, np.split(embeds_TNE, ends), strict=True):
            _check(job, part, "projector")
            job.parts.append(part.reshape(-1, part.shape[-1]))
            job.vision_ms += vision_ms
            job.projector_ms += (time.perf_counter() - clock) * 1000

    def _finish(self, job: ImageJob) -> None:
        """Take the job out of those that wait, if its last tile is encoded or it has failed."""
        assert job.pixels is not None
        if job.error is None:
            if len(job.pixels):
                return
            job.encoded = EncodedImage(_joined(job.parts), job.digest)
            self.cache.put(job.tiles, job.encoded)
        job.pixels, job.parts = None, []
        del self._pending[job.digest]


def _check(job: ImageJob, output: np.ndarray, stage: str) -> None:
    try:
        require_finite(output, stage)
    except R1VError as error:
        job.error = job.error or error


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)
