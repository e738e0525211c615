from __future__ import annotations

import random

import pytest

from r1v_export.runner.reasoning import Reasoning, ReasoningSplitter, split_reasoning


@pytest.mark.parametrize(
    ("text", "reasoning", "answer", "complete"),
    [
        ("two red circles\n</think>\n\nTwo.", "two red circles", "Two.", True),
        ("</think>Two.", "", "Two.", True),
        ("<think>\nhm</think>Two.", "hm", "Two.", True),
        ("<think>\n<think>hm</think>Two.", "hm", "Two.", True),
        ("one</think>\n<think>two</think>Three", "one\ntwo", "Three", True),
        ("never closed", "never closed", "", False),
        ("cut in the tag </thi", "cut in the tag </thi", "", False),
        ("", "", "", False),
        ("a</think>", "a", "", True),
        ("a</think>b</think>c", "a", "b</think>c", True),
        ("a </think> more </think> b", "a", "more </think> b", True),
        ("a \n</think> <think>\tb </think>c", "a \n \tb", "c", True),
        ("a</think>write <think> here", "a", "write <think> here", True),
        ("the tag <think> inside</think>b", "the tag <think> inside", "b", True),
        ("x < y and </ b</think>  c  d \n", "x < y and </ b", "c  d", True),
        ("多少？</think>三个", "多少？", "三个", True),
    ],
)
def test_a_text_that_starts_in_the_reasoning(text, reasoning, answer, complete):
    result = split_reasoning(text)
    assert (result.reasoning, result.answer, result.complete) == (reasoning, answer, complete)


@pytest.mark.parametrize(
    ("text", "reasoning", "answer", "complete"),
    [
        ("Two.", "", "Two.", True),
        ("\n Two <think> b\n", "", "Two <think> b", True),
        ("<think>hm</think>Two.", "hm", "Two.", True),
        ("a</think>b", "", "a</think>b", True),
        ("<think>cut", "cut", "", False),
        ("<thin", "", "<thin", True),
    ],
)
def test_a_text_with_thinking_off(text, reasoning, answer, complete):
    result = split_reasoning(text, thinking=False)
    assert (result.reasoning, result.answer, result.complete) == (reasoning, answer, complete)


def test_the_result_does_not_depend_on_how_the_text_is_cut():
    rng = random.Random(0)
    parts = ["<think>", "</think>", "<", "</th", "think>", " ", "\n", "a", "好", "<thi"]
    for _ in range(2000):
        text = "".join(rng.choice(parts) for _ in range(rng.randrange(9)))
        thinking = rng.random() < 0.6
        whole = split_reasoning(text, thinking)
        splitter, reasoning, answer, at = ReasoningSplitter(thinking), "", "", 0
        while at < len(text):
            size = rng.randrange(1, 4)
            piece = splitter.push(text[at : at + size])
            reasoning, answer, at = reasoning + piece.reasoning, answer + piece.answer, at + size
        piece = splitter.flush()
        assert (reasoning + piece.reasoning, answer + piece.answer) == (whole.reasoning, whole.answer)
        assert splitter.in_reasoning is not whole.complete


def test_certain_text_is_not_held_back():
    splitter = ReasoningSplitter()
    assert splitter.push("I see <").reasoning == "I see"
    assert splitter.push("3 circles").reasoning == " <3 circles"
    assert splitter.push("</thi") == ("", "")
    assert splitter.push("nk>\n\nThree") == ("", "Three")
    assert splitter.push(" of them").answer == " of them"


def test_other_tags_separate_as_well():
    assert split_reasoning("why [end] so", tags=("[begin]", "[end]")) == Reasoning("why", "so", complete=True)
    assert split_reasoning("[begin] why [end]so", thinking=False, tags=("[begin]", "[end]")).answer == "so"
    assert split_reasoning("a </think> b", tags=("[begin]", "[end]")).complete is False
