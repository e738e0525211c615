"""What is compared: questions about images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

import numpy as np
from PIL import Image

from r1v_export.count import Count
from r1v_export.model_spec import ModelSpec
from r1v_export.nano import dataset
from r1v_export.processing.load_image import load_image
from r1v_export.processing.synthetic_image import synthetic_image
from r1v_export.processing.tiling import tile_count


@dataclass(frozen=True)
class ParitySample:
    """One question about any number of images; `answer` is the correct one, if known."""

    name: str
    images: tuple[Image.Image, ...]
    question: str
    answer: str | None = None
    reply: str = (
        "I see a picture with several shapes in different colors. The largest one is in the middle, and the smaller "
        "ones are around it, from left to right."
    )
    """What a streamed comparison feeds both engines behind the prompt, as far as it takes."""


def held_out(count: int) -> Iterator[ParitySample]:
    """The first `count` held-out questions of the built-in generator: for r1v-nano, which was trained on its others."""
    for index, sample in enumerate(dataset.samples("eval", count)):
        yield ParitySample(f"{sample.kind} {index}", (sample.image,), sample.question, sample.answer, sample.reasoning)


_QUESTIONS = (
    "What do you see?",
    "Describe the picture in one sentence.",
    "Which colours are there, from left to right?",
    "Is there any text? If so, read it out.",
    "How many objects are there? Count them one by one.",
)

# Width to height, so that the tiler makes different grids; relative to the side of a tile.
_SHAPES = ((1.0, 1.0), (2.0, 1.0), (0.7, 2.1), (3.1, 1.2), (1.4, 1.4))


def synthetic(count: int, tile_size: int) -> Iterator[ParitySample]:
    """Synthetic images of several shapes (gradients, noise, figures), for any model.

    The same on every machine. Every fifth question has two images.
    """
    for index in range(count):
        rng = np.random.default_rng(index)
        count = 2 if index % 5 == 4 else 1
        shapes = (_SHAPES[(index + n) % len(_SHAPES)] for n in range(count))
        images = tuple(synthetic_image(rng, round(tile_size * wide), round(tile_size * high)) for wide, high in shapes)
        yield ParitySample(f"synthetic {index}", images, _QUESTIONS[index % len(_QUESTIONS)])


def with_a_prompt_of(tokens: int, samples: Iterable[ParitySample], spec: ModelSpec) -> Iterable[ParitySample]:
    """The samples, and where tiles are so small that all of their prompts may be shorter, one with so long a prompt.

    It is the first question, with images of all samples in turn, repeated where they are too few, until they alone are
    so many tokens.
    """
    if spec.tokens_per_tile >= tokens:
        return samples
    known, shown = list(samples), list[Image.Image]()
    images = [image for sample in known for image in sample.images]
    for image in cycle(images):
        shown.append(image)
        tokens -= tile_count(*image.size, spec.tiling) * spec.tokens_per_tile
        if tokens <= 0:
            break
    if not shown:
        return known
    return [*known, ParitySample(str(Count(len(shown), "image")), tuple(shown), known[0].question)]


_NAME_CHARACTERS = 200
"""A data URL may be long."""


def from_files(
    sources: Sequence[str | Path], questions: Iterable[str], load: Callable[[str], Image.Image] = load_image
) -> Iterator[ParitySample]:
    """Every question about every image.

    Args:
        sources: paths, or whatever else `load` takes.
        load: opens an image by the bundle's policy. The samples above are generated as RGB, the same with any policy.

    Raises:
        InputError: a file that cannot be read as an image.
    """
    questions = tuple(questions)
    for source in map(str, sources):
        image, name = load(source), Path(source[:_NAME_CHARACTERS]).name
        yield from (ParitySample(f"{name}, question {n}", (image,), q) for n, q in enumerate(questions, start=1))
