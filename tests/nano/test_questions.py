"""Every question is answered again, from its wording and the scene, by code that shares nothing with the generator."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from random import Random

import pytest

from r1v_export.nano.questions import KINDS, Question, ask, describe
from r1v_export.nano.scenes import Bar, ChartScene, Object, ObjectScene, Scene, chart_scene, object_scene

WHITE = (255, 255, 255)


def asked(kind: str, count: int = 200) -> Iterator[tuple[Scene, Question]]:
    make = chart_scene if kind == "chart" else object_scene
    for seed in range(count):
        rng = Random(seed)
        scene = make(rng, (112, 112))
        question = ask(scene, kind, rng)
        if question is not None:
            yield scene, question


def chart(*bars: Bar) -> ChartScene:
    return ChartScene((112, 112), WHITE, (10.0, 5.0, 105.0, 105.0), 0.6, bars)


def matching(scene: ObjectScene, words: str) -> list[Object]:
    """The objects that words such as `crosses`, `red object`, `objects`, `object at the top left` mean."""
    found = list(scene.objects)
    place = re.search(r"at the (\w+) (\w+)", words)
    if place:
        rows, columns = ["top", "middle", "bottom"], ["left", "centre", "right"]
        cell = rows.index(place[1]), columns.index(place[2])
        found = [item for item in found if (item.row, item.column) == cell]
    for word in re.sub(r"at the .*", "", words).split():
        stem = "cross" if word == "crosses" else word.rstrip("s") if word != "cross" else word
        if stem != "object":
            found = [item for item in found if stem in (item.colour, item.shape)]
    return found


def the_one(scene: ObjectScene, words: str) -> Object:
    (item,) = matching(scene, words)
    return item


def count_again(scene: ObjectScene, text: str) -> str:
    words = re.fullmatch(r"(?:How many|Count the) (.+?)(?: are there\?| do you see\?| in the picture\.)", text)[1]
    return str(len(matching(scene, words)))


def colour_again(scene: ObjectScene, text: str) -> str:
    return the_one(scene, re.search(r"(?:is|does) the (.+?)(?: have)?\?", text)[1]).colour


def shape_again(scene: ObjectScene, text: str) -> str:
    return the_one(scene, re.search(r"(?:is|does) the (.+?)(?: have)?\?", text)[1]).shape


def compare_again(scene: ObjectScene, text: str, axis: int, less: str, more: str) -> str:
    first, second = (
        the_one(scene, name) for name in re.findall(r"the ([a-z]+ (?:circle|square|triangle|cross))", text)
    )
    # The middles in pixels, not the cells the generator compares.
    return less if first.box[axis] + first.box[2] / 2 < second.box[axis] + second.box[2] / 2 else more


def chart_again(scene: ChartScene, text: str) -> str:
    heights = {bar.colour: bar.height for bar in scene.bars}
    named = re.search(r"the (\w+) bar\?", text)
    if named and named[1] in heights:
        return str(heights[named[1]])
    by_height = sorted(heights, key=heights.__getitem__)
    return by_height[-1] if "tallest" in text else by_height[0]


AGAIN: dict[str, Callable[..., str]] = {
    "count": count_again,
    "colour": colour_again,
    "shape": shape_again,
    "left-right": lambda scene, text: compare_again(scene, text, 0, "left", "right"),
    "above-below": lambda scene, text: compare_again(scene, text, 1, "above", "below"),
    "chart": chart_again,
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_answer_is_right_for_its_scene(kind: str):
    answered = 0
    for scene, question in asked(kind):
        assert question.answer == AGAIN[kind](scene, question.text), question
        assert question.kind == kind
        answered += 1
    assert answered > 25


@pytest.mark.parametrize("kind", KINDS)
def test_every_reasoning_lists_what_is_seen_first(kind: str):
    for scene, question in asked(kind, 50):
        assert question.reasoning.startswith(describe(scene) + " ")


def test_every_answer_of_a_kind_turns_up():
    answers = {kind: {question.answer for _, question in asked(kind, 600)} for kind in KINDS}
    assert answers["count"] == set("1234")
    assert answers["colour"] == {"red", "green", "blue", "yellow", "purple", "black"}
    assert answers["shape"] == {"circle", "square", "triangle", "cross"}
    assert answers["left-right"] == {"left", "right"}
    assert answers["above-below"] == {"above", "below"}
    assert answers["chart"] == answers["colour"] | set("12345")


def test_a_description_names_objects_in_reading_order():
    scene = ObjectScene(
        (112, 112),
        WHITE,
        (Object("circle", "red", 0, 0, (5.0, 5.0, 25.0)), Object("cross", "blue", 2, 1, (45.0, 80.0, 25.0))),
    )
    assert describe(scene) == "I see a red circle top left, a blue cross bottom centre."
    assert describe(chart(Bar("red", 3), Bar("green", 1))) == "I see bars: red 3, green 1."


def test_two_equally_tall_bars_are_never_asked_for_as_the_tallest():
    scene = chart(Bar("red", 4), Bar("green", 4), Bar("blue", 2))
    texts = [question.text for seed in range(200) if (question := ask(scene, "chart", Random(seed)))]
    assert not any("tallest" in text for text in texts)
    assert any("shortest" in text for text in texts)


def test_objects_in_one_column_are_never_compared_from_left_to_right():
    pair = (Object("circle", "red", 0, 1, (45.0, 5.0, 25.0)), Object("cross", "blue", 2, 1, (40.0, 80.0, 25.0)))
    scene = ObjectScene((112, 112), WHITE, pair)
    assert ask(scene, "left-right", Random(0)) is None
    assert ask(scene, "above-below", Random(0)) is not None


def test_objects_that_are_compared_are_the_only_ones_of_their_shapes():
    for scene, question in [*asked("left-right"), *asked("above-below")]:
        shapes = [item.shape for item in scene.objects]
        assert all(shapes.count(name) == 1 for name in re.findall(r"circle|square|triangle|cross", question.text))


def test_a_chart_is_asked_only_about_bars():
    bars = chart(Bar("red", 3), Bar("green", 1))
    assert [kind for kind in KINDS if ask(bars, kind, Random(0))] == ["chart"]
