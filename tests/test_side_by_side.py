"""Two generators drawn at the same time: all they yield, and what ends both."""

from __future__ import annotations

import threading
from collections.abc import Generator
from contextvars import ContextVar

import pytest

from r1v_export.side_by_side import side_by_side

NAME: ContextVar[str] = ContextVar("name")


def test_all_of_both_is_given_the_second_from_another_thread() -> None:
    threads = dict[str, int]()

    def numbers(name: str, *content: int) -> Generator[int]:
        for number in content:
            threads[name] = threading.get_ident()
            yield number

    assert sorted(side_by_side(numbers("here", 1, 2, 3), numbers("there", 4, 5))) == [1, 2, 3, 4, 5]
    assert threads["here"] == threading.get_ident() != threads["there"]
    assert [*side_by_side(numbers("here"), numbers("there", 1))] == [1]
    assert [*side_by_side(numbers("here", 1), numbers("there"))] == [1]


def test_the_second_sees_context_variables() -> None:
    def name() -> Generator[str]:
        yield NAME.get()

    token = NAME.set("outer")
    try:
        assert [*side_by_side(name(), name())] == ["outer", "outer"]
    finally:
        NAME.reset(token)


def test_both_go_on_at_the_same_time() -> None:
    meeting = threading.Barrier(2, timeout=20)

    def meet() -> Generator[int]:
        yield meeting.wait()

    assert sorted(side_by_side(meet(), meet())) == [0, 1]


@pytest.mark.parametrize("failing", ["here", "there"])
def test_an_error_of_one_ends_the_other(failing: str) -> None:
    closed = threading.Event()

    def endless() -> Generator[int]:
        try:
            while True:
                yield 1
        finally:
            closed.set()

    def fail() -> Generator[int]:
        yield 2
        raise OSError("No space left on device")

    both = (fail(), endless()) if failing == "here" else (endless(), fail())
    with pytest.raises(OSError, match="No space"):
        for _ in side_by_side(*both):
            pass
    assert closed.is_set()


def test_whoever_stops_drawing_ends_both() -> None:
    closed = []

    def endless(name: str) -> Generator[int]:
        try:
            while True:
                yield 1
        finally:
            closed.append(name)

    both = side_by_side(endless("here"), endless("there"))
    next(both)
    both.close()
    assert sorted(closed) == ["here", "there"]
