"""A request that TensorRT-LLM works on, whichever way it was asked."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator

from r1v_export.generation import Generated


class OpenRequest(ABC):
    """A `generation.Generation`: over with its last tokens, an error of its own, `cancel` or `close`."""

    def __init__(self, cancel: threading.Event) -> None:
        self._cancel = cancel
        self._finished = False

    def __iter__(self) -> Iterator[Generated]:
        return self

    def __next__(self) -> Generated:
        if self._finished:
            raise StopIteration
        if self._cancel.is_set():
            self.close()
            return Generated([], "cancelled")
        generated = self._next()
        self._finished = generated.finish_reason is not None
        return generated

    def close(self) -> None:
        if not self._finished:
            self._finished = True
            self._give_up()

    @abstractmethod
    def _next(self) -> Generated:
        """What came since the last time. Where the library has ended the request with an error, `_finished` is set."""

    @abstractmethod
    def _give_up(self) -> None:
        """Cancel the request in the library."""
