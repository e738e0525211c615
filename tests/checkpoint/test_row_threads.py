"""Threads that share the rows of a weight: all rows once, results in order, one thread of torch in each."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch

from r1v_export.checkpoint.row_threads import each_part, in_order


@pytest.fixture(autouse=True)
def three_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("rows", [0, 1, 2, 3, 100])
def test_every_row_is_in_one_part(rows: int) -> None:
    seen: list[int] = []
    each_part(rows, seen.extend)
    assert sorted(seen) == list(range(rows))


def test_results_come_in_the_order_of_their_tasks() -> None:
    later = threading.Event()

    def first() -> int:
        assert later.wait(60)  # a later task ends before this one
        return 0

    tasks = [first, lambda: later.set() or 1, *(lambda n=n: n for n in range(2, 40))]
    assert list(in_order(tasks)) == list(range(40))


def test_only_a_few_tasks_are_begun_before_their_results_are_taken() -> None:
    begun: list[int] = []
    results = in_order((lambda n=n: begun.append(n)) for n in range(100))
    next(results)
    results.close()
    assert len(begun) <= 7


def test_torch_has_one_thread_in_each_and_as_many_as_before_outside() -> None:
    assert set(in_order([torch.get_num_threads] * 12)) == {1}
    assert torch.get_num_threads() == 3
    other: list[int] = []
    thread = threading.Thread(target=lambda: other.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert other == [3]


def test_an_error_in_a_part_is_raised() -> None:
    def fail(part: range) -> None:
        if 99 in part:
            raise ValueError("row 99")

    with pytest.raises(ValueError, match="row 99"):
        each_part(100, fail)
