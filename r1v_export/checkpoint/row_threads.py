"""Rows of a weight shared out over threads, each of which computes alone.

torch would split every small operation over its own threads instead, and let them wait for each other after each: on
blocks that fit a core's cache, waiting takes longer than the arithmetic, and much longer while other programs run.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from typing import TypeVar

import torch

Result = TypeVar("Result")


def each_part(rows: int, work: Callable[[range], None]) -> None:
    """Call `work` with parts of `range(rows)` that together are all of it, at the same time."""
    threads = max(1, min(rows, torch.get_num_threads()))
    bounds = [rows * part // threads for part in range(threads + 1)]
    parts = (range(*bounds[part : part + 2]) for part in range(threads))
    for _ in in_order(lambda part=part: work(part) for part in parts):  # type: ignore[misc]
        pass


def in_order(tasks: Iterable[Callable[[], Result]]) -> Iterator[Result]:
    """The results of tasks, in their order, computed by as many threads as torch would use here, a few tasks ahead."""
    threads = torch.get_num_threads()
    if threads == 1:
        yield from (task() for task in tasks)
        return
    pool, waiting = _pool(os.getpid(), threads), deque[Future[Result]]()
    try:
        for task in tasks:
            waiting.append(pool.submit(task))
            if len(waiting) > 2 * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


@cache
def _pool(process: int, threads: int) -> ThreadPoolExecutor:
    """Threads in which torch has one thread. Those of a process do not live on in its forks."""
    pool, ready = ThreadPoolExecutor(threads, "rows"), threading.Barrier(threads + 1)
    before = torch.get_num_threads()
    for _ in range(threads):
        pool.submit(_compute_alone, ready)
    ready.wait()
    torch.set_num_threads(before)  # the number is each thread's own, but also the default of later ones
    return pool


def _compute_alone(ready: threading.Barrier) -> None:
    torch.get_num_threads()  # torch initializes a thread's number here, which would undo the next line if it came later
    torch.set_num_threads(1)
    ready.wait()
