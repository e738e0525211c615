"""What a thread opens while its process does something else."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

Opened = TypeVar("Opened")
Begun = Callable[[], None]
"""What opens calls it as soon as it is at work in native code, which needs no lock of Python's."""
_NAME = "opening"


class Opening(Generic[Opened]):
    """Opens something in a thread of its own. Made, it is at work in native code, or done.

    Reading a large tokenizer, which is what a process does meanwhile, holds Python's lock for half a second: a thread
    that needs the lock once more would wait so long.

    Args:
        open_: what is done in the thread.
    """

    def __init__(self, open_: Callable[[Begun], Opened]) -> None:
        self._begun, self._process = threading.Event(), os.getpid()
        # Not a daemon: a thread that comes back from native code while Python ends would end the process.
        self._thread = threading.Thread(target=self._run, args=(open_,), name=_NAME)
        self._thread.start()
        self._begun.wait()

    def result(self) -> Opened:
        """What is open, as soon as it is.

        Raises:
            BaseException: what opening it has raised.
        """
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._opened

    @property
    def is_here(self) -> bool:
        """Whether the thread is this process's, and not of one that it was forked from."""
        return self._process == os.getpid()

    def _run(self, open_: Callable[[Begun], Opened]) -> None:
        self._error: BaseException | None = None
        try:
            self._opened = open_(self._begun.set)
        except BaseException as error:  # whatever it is, `result` raises it
            self._error = error
        finally:
            self._begun.set()


def is_opening() -> bool:
    """Whether a thread still opens something, for which the end of the process would wait."""
    return any(thread.name == _NAME for thread in threading.enumerate())
