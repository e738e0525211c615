"""Questions about a scene, each with short reasoning and a final answer.

The reasoning first lists what is seen, in reading order, then repeats word for word what the question is about: a model
that learns to write it has to read the whole image, whatever it is asked, and then has only to look things up.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from r1v_export.nano.scenes import Bar, ChartScene, Object, ObjectScene, Scene

_COUNT_WORDS = ("one", "two", "three", "four", "five", "six")


@dataclass(frozen=True)
class Question:
    """What is asked, what is seen, what follows from it, the final answer, and the kind (a key of `KINDS`)."""

    text: str
    seen: str
    conclusion: str
    answer: str
    kind: str

    @property
    def reasoning(self) -> str:
        """The whole reasoning: what is seen, then the conclusion."""
        return f"{self.seen} {self.conclusion}"


def ask(scene: Scene, kind: str, rng: Random) -> Question | None:
    """A question of that kind, or None where the scene has no unambiguous one."""
    if isinstance(scene, ChartScene) != (kind == "chart"):
        return None
    asked = KINDS[kind](scene, rng)
    if asked is None:
        return None
    text, conclusion, answer = asked
    return Question(text, describe(scene), conclusion, answer, kind)


def describe(scene: Scene) -> str:
    """What is seen, in reading order, as one sentence."""
    if isinstance(scene, ChartScene):
        return f"I see bars: {', '.join(map(str, scene.bars))}."
    return f"I see {', '.join(f'a {item}' for item in scene.objects)}."


# What a maker of questions returns: the question, the conclusion of the reasoning, the answer.
_Asked = tuple[str, str, str]


def _count(scene: ObjectScene, rng: Random) -> _Asked:
    text = rng.choice(
        ("How many objects are there?", "How many objects do you see?", "Count the objects in the picture.")
    )
    listed = ", ".join(f"{word} {item}" for word, item in zip(_COUNT_WORDS, scene.objects, strict=False))
    return text, f"Objects: {listed}. That makes {len(scene.objects)}.", str(len(scene.objects))


def _colour(scene: ObjectScene, rng: Random) -> _Asked:
    item, what = _one_object(scene, rng, by="shape")
    text = rng.choice((f"What colour is the {what}?", f"Which colour does the {what} have?"))
    return text, f"It is a {item}.", item.colour


def _shape(scene: ObjectScene, rng: Random) -> _Asked:
    item, what = _one_object(scene, rng, by="colour")
    text = rng.choice((f"What shape is the {what}?", f"Which shape does the {what} have?"))
    return text, f"It is a {item}.", item.shape


def _one_object(scene: ObjectScene, rng: Random, by: str) -> tuple[Object, str]:
    """An object and words that identify it: its shape or color if unique, otherwise its place."""
    item = rng.choice(scene.objects)
    if sum(getattr(other, by) == getattr(item, by) for other in scene.objects) == 1 and rng.random() < 0.7:
        return item, item.shape if by == "shape" else f"{item.colour} object"
    return item, f"object at the {item.place}"


def _left_right(scene: ObjectScene, rng: Random) -> _Asked | None:
    pair = _pair(scene, rng, "column")
    if pair is None:
        return None
    first, second = pair
    text = rng.choice(
        (
            f"Is the {first.name} left or right of the {second.name}?",
            f"Is the {first.name} to the left or to the right of the {second.name}?",
        )
    )
    return _compared(text, first, second, "left" if first.column < second.column else "right")


def _above_below(scene: ObjectScene, rng: Random) -> _Asked | None:
    pair = _pair(scene, rng, "row")
    if pair is None:
        return None
    first, second = pair
    text = rng.choice(
        (
            f"Is the {first.name} above or below the {second.name}?",
            f"Is the {first.name} higher or lower than the {second.name}? Answer above or below.",
        )
    )
    return _compared(text, first, second, "above" if first.row < second.row else "below")


def _pair(scene: ObjectScene, rng: Random, axis: str) -> tuple[Object, Object] | None:
    """Two objects in different rows or columns, each the only one of its shape."""
    shapes = [item.shape for item in scene.objects]
    unique = [item for item in scene.objects if shapes.count(item.shape) == 1]
    pairs = [(a, b) for a in unique for b in unique if getattr(a, axis) != getattr(b, axis)]
    return rng.choice(pairs) if pairs else None


def _compared(text: str, first: Object, second: Object, answer: str) -> _Asked:
    return text, f"Compare a {first} and a {second}.", answer


def _chart(scene: ChartScene, rng: Random) -> _Asked | None:
    wanted = rng.choice(("tallest", "shortest", "height"))
    if wanted == "height":
        bar = rng.choice(scene.bars)
        text = rng.choice((f"How tall is the {bar.colour} bar?", f"What is the height of the {bar.colour} bar?"))
        return text, f"It is {bar}.", str(bar.height)
    extreme = _only_extreme(scene.bars, max if wanted == "tallest" else min)
    if extreme is None:
        return None
    text = rng.choice((f"Which bar is the {wanted}?", f"What colour is the {wanted} bar?"))
    return text, f"The {wanted} is {extreme}.", extreme.colour


def _only_extreme(bars: tuple[Bar, ...], pick: Callable[..., int]) -> Bar | None:
    height = pick(bar.height for bar in bars)
    found = [bar for bar in bars if bar.height == height]
    return found[0] if len(found) == 1 else None


KINDS: dict[str, Callable[..., _Asked | None]] = {
    "count": _count,
    "colour": _colour,
    "shape": _shape,
    "left-right": _left_right,
    "above-below": _above_below,
    "chart": _chart,
}
