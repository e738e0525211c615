"""Device memory, streams and captured graphs for the sessions, by way of torch, which is here anyway."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor


class Accelerator(Protocol):
    """Where engines run."""

    device: torch.device

    @property
    def stream(self) -> int:
        """Handle of the stream that all work goes to."""

    def synchronize(self) -> None:
        """Wait until the stream's work is done."""

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        """Record the work that `work` puts on the stream; calling the result does it again, on the same memory."""
        ...


class Cuda:
    """The current CUDA GPU."""

    def __init__(self) -> None:
        self.device = torch.device("cuda", torch.cuda.current_device())
        self._stream = torch.cuda.Stream(self.device)

    @property
    def stream(self) -> int:
        return int(self._stream.cuda_stream)

    def synchronize(self) -> None:
        self._stream.synchronize()

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        graph = torch.cuda.CUDAGraph()
        # Another thread may encode images meanwhile.
        with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
            work()

        def replay() -> None:
            with torch.cuda.stream(self._stream):
                graph.replay()

        return replay


def copy(source: Tensor, target: Tensor) -> None:
    """Fill `target` [...] with `source` of the same shape, cast to its type, and wait for it."""
    target.copy_(source)
    if target.is_cuda:
        torch.cuda.current_stream(target.device).synchronize()


def compute_capability() -> int | None:
    """Of the GPU that torch uses, as 89 for 8.9; None where there is none."""
    if not torch.cuda.is_available():
        return None
    major, minor = torch.cuda.get_device_capability()
    return 10 * major + minor
