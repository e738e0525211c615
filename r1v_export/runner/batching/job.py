"""Requests of a batching runner on their way to a row."""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from r1v_export.generation import Sampling
from r1v_export.runner.answer import AnswerStream
from r1v_export.runner.batching.batch import RequestState
from r1v_export.runner.batching.submission import Submission
from r1v_export.runner.encoded_prompt import EncodedPrompt, OpenPrompt
from r1v_export.runner.prompt_encoder import Request


@dataclass(eq=False)
class Job:
    """A submitted request.

    Attributes:
        opened: its prompt while its images are being encoded.
        encoded, stream: its prompt and its answer, once they are.
        state: its answer in the batch.
    """

    submission: Submission
    request: Request | EncodedPrompt
    sampling: Sampling
    deadline: float | None
    client: str
    submitted: float = field(default_factory=time.perf_counter)
    opened: OpenPrompt | None = None
    encoded: EncodedPrompt | None = None
    stream: AnswerStream | None = None
    state: RequestState | None = None

    def is_due(self) -> bool:
        """Whether its answer is to end with what it has."""
        if self.deadline is not None and time.monotonic() >= self.deadline:
            self.submission.give_up("deadline")
        return self.submission.given_up is not None

    def count_waiting(self) -> None:
        """Count the time since it was submitted in which nothing was done for it."""
        assert self.encoded is not None
        timings = self.encoded.timings
        passed_ms = (time.perf_counter() - self.submitted) * 1000
        timings.queue_ms = max(0.0, passed_ms - timings.preprocess_ms - timings.vision_ms - timings.projector_ms)


class JobQueue:
    """Jobs that wait, by client: clients take turns, and each client's jobs come in their order."""

    def __init__(self) -> None:
        self._by_client: OrderedDict[str, deque[Job]] = OrderedDict()

    def __len__(self) -> int:
        return sum(map(len, self._by_client.values()))

    def __iter__(self) -> Iterator[Job]:
        return (job for jobs in self._by_client.values() for job in jobs)

    def add(self, job: Job) -> None:
        """Let a job wait behind those of its client."""
        self._by_client.setdefault(job.client, deque()).append(job)

    def pop(self) -> Job:
        """Take the first job of the client whose turn it is."""
        client, jobs = self._by_client.popitem(last=False)
        job = jobs.popleft()
        if jobs:
            self._by_client[client] = jobs  # Behind all other clients.
        return job

    def remove(self, job: Job) -> None:
        """Take out a job, wherever it waits."""
        jobs = self._by_client.get(job.client, deque())
        if job in jobs:
            jobs.remove(job)
        if not jobs:
            self._by_client.pop(job.client, None)
