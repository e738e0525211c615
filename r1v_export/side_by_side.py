"""Two generators drawn at the same time."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import closing
from contextvars import copy_context
from queue import SimpleQueue
from typing import TypeVar

Item = TypeVar("Item")

_REPORT_S = 0.1


def side_by_side(here: Generator[Item], there: Generator[Item]) -> Generator[Item]:
    """What two generators yield, in no order between them; a thread of its own draws from the second.

    Whichever raises ends both: the other one is closed where it stands. The second sees the caller's context variables.
    """
    drawn, is_over = SimpleQueue[Item](), False

    def draw() -> None:
        with closing(there):
            for item in there:
                drawn.put(item)
                if is_over:
                    return

    with ThreadPoolExecutor(1, "side") as pool, closing(here):
        drawing = pool.submit(copy_context().run, draw)
        try:
            for item in here:
                yield item
                yield from _waiting(drawn)
                if drawing.done():
                    drawing.result()
            while wait([drawing], _REPORT_S).not_done:
                yield from _waiting(drawn)
            drawing.result()
            yield from _waiting(drawn)
        finally:
            is_over = True


def _waiting(drawn: SimpleQueue[Item]) -> Iterator[Item]:
    """What waits in a queue now; more may come meanwhile."""
    for _ in range(drawn.qsize()):
        yield drawn.get()
