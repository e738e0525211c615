"""What the routes need of whoever answers: a batching runner of this process, or another server."""

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol

from r1v_export.generation import Sampling
from r1v_export.runner.batching.options import BatchingStats
from r1v_export.runner.batching.submission import Deliver, Submission
from r1v_export.runner.prompt_encoder import PromptEncoder, Request


class Backend(Protocol):
    """Answers requests; `BatchingRunner` is one."""

    @property
    def runner(self) -> PromptEncoder:
        """Makes tokens of prompts."""

    def submit(
        self,
        request: Request,
        sampling: Sampling,
        *,
        deliver: Deliver,
        deadline: float,
        request_id: str,
        client: str,
    ) -> Submission:
        """Take a request, as `BatchingRunner.submit`; any thread may.

        Raises:
            R1VError: it is refused.
        """

    @property
    def capacity(self) -> int | None:
        """Requests that are taken at a time, running and waiting; None where another server decides."""

    @property
    def counted(self) -> Collection[str]:
        """The fields of `stats` that are known here."""

    @property
    def lost_at(self) -> float:
        """When it last lost what computes for it, in seconds of `time.monotonic`: a token from before shows nothing.
        Minus infinity if it never did."""

    def stats(self) -> BatchingStats:
        """What runs and waits now, and what has been counted."""

    def close(self, drain: bool = True) -> None:
        """Refuse further requests; finish or cancel those that were taken."""
