"""Generated questions about generated images, in three disjoint splits; any sample is found by (split, index)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random
from typing import Literal, get_args

from PIL import Image

from r1v_export.nano import questions, scenes

Split = Literal["train", "eval", "calibration"]
_KINDS_OF_OTHERS = (*questions.KINDS, "colour", "shape", "colour", "shape")
"""Kinds of the further questions about an image: looking things up comes three times as often."""


@dataclass(frozen=True)
class GeneratedSample:
    """An image, a question about it, the correct reasoning and answer, and the question's kind."""

    image: Image.Image
    question: str
    reasoning: str
    answer: str
    kind: str


def samples(split: Split, count: int) -> Iterator[GeneratedSample]:
    """The first `count` samples of a split; kinds take turns."""
    return (sample(split, index) for index in range(count))


def sample(split: Split, index: int) -> GeneratedSample:
    """Sample `index` of a split, the same on every machine."""
    rng = seeded(split, index)
    scene, asked = scene_and_questions(rng, scenes.image_size(rng), kind_at(index), 1)
    question = asked[0]
    return GeneratedSample(scenes.draw(scene), question.text, question.reasoning, question.answer, question.kind)


def kind_at(index: int) -> str:
    """The kind of question that sample `index` asks."""
    return list(questions.KINDS)[index % len(questions.KINDS)]


def seeded(split: Split, index: int) -> Random:
    """The random numbers of one sample: a hash of split and index, so splits never share an image."""
    if split not in get_args(Split):
        raise ValueError(f"split is one of {get_args(Split)}, not {split!r}")
    return Random(int.from_bytes(hashlib.sha256(f"r1v-nano/{split}/{index}".encode()).digest()[:8], "big"))


def scene_and_questions(
    rng: Random, size: tuple[int, int], kind: str, count: int, max_objects: int = scenes.MAX_OBJECTS
) -> tuple[scenes.Scene, list[questions.Question]]:
    """A scene that has a question of the requested kind, which comes first, then others about the same image."""
    while True:
        scene = scenes.chart_scene(rng, size) if kind == "chart" else scenes.object_scene(rng, size, max_objects)
        first = questions.ask(scene, kind, rng)
        if first is not None:
            break
    asked = [first]
    while len(asked) < count:
        other = questions.ask(scene, rng.choice(_KINDS_OF_OTHERS), rng)
        if other is not None:
            asked.append(other)
    return scene, asked
