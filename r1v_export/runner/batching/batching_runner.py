"""Many requests at a time over one model.

    with BatchingRunner(open_runner("out/bundle"), BatchingOptions(max_rows=8)) as batching:
        submission = batching.submit(Request.ask("What is this?", image), Sampling(max_new_tokens=100))
        for event in submission:                       # blocks; or submission.result() for the Answer alone
            print(event.reasoning, event.text)

* `submit` may be called from any thread and never blocks: it refuses (`QueueFullError`), or returns a `Submission`.
  Images are cut, encoded and tokens made on other threads.
* Events are `TokenEvent`s: each brings what became certain of reasoning and answer, apart; the last one has the whole
  `Answer` with the token counts. Whatever is wrong with a request (an image, its length) comes in the place of its
  events: raised where a caller iterates or asks for the result, given to `deliver` where that takes the events. It
  never comes from `submit`, and never touches another request.
* `deliver` is called on a thread of the runner and must return at once. A server on asyncio passes

      lambda event: loop.call_soon_threadsafe(queue.put_nowait, event)

* `Submission.cancel` (a client has gone) and `deadline` free a request's row before the next decoder step. Its last
  event comes as that of any other answer, with the finish reason "cancelled" or "deadline" and what there was.
* Waiting requests are taken in turns by `client` (an API key, an address; all alike by default), each client's in their
  order, so no client keeps others waiting by sending many.
* Every answer depends on its own prompt, sampling and seed only.
* `stats` is cheap and may be called from any thread, for `/metrics`.
* `close` ends it: new requests are refused, and those that were taken are finished (`drain`) or cancelled.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from types import TracebackType

from r1v_export.errors import GraphError, QueueFullError, R1VError, UsageError
from r1v_export.generation import FinishReason, Sampling
from r1v_export.log_event import log_event
from r1v_export.processing.generation_config import default_sampling
from r1v_export.runner.answer import CANCELLED_BEFORE_START, TokenEvent
from r1v_export.runner.base import BaseRunner
from r1v_export.runner.batching.job import Job, JobQueue
from r1v_export.runner.batching.options import BatchingOptions, BatchingStats
from r1v_export.runner.batching.submission import Deliver, Submission
from r1v_export.runner.encoded_prompt import EncodedPrompt
from r1v_export.runner.prompt_encoder import Request

_LOG = logging.getLogger(__name__)

QUEUE_FULL = "Too many requests are waiting."
"""What a refusal begins with; Triton's errors have no status of its own for it."""


class BatchingRunner:
    """Answers the requests of many callers over one model, see the module.

    Two threads: one makes tokens of requests and encodes their images, a few requests ahead; the other decodes.

    Args:
        runner: over an engine, or over a library that decodes by itself. Nobody else may use it meanwhile.
        options: limits.
    """

    lost_at = float("-inf")
    """What computes is in this process, and cannot be lost without it; see `serve.backend.Backend`."""

    def __init__(self, runner: BaseRunner, options: BatchingOptions | None = None) -> None:
        self.runner, self.options = runner, options or BatchingOptions()
        self._changed = threading.Condition()
        self._queue = JobQueue()
        """Requests that nothing was done for yet."""
        self._preparing: list[Job] = []
        self._ready: deque[Job] = deque()
        self._running: list[Job] = []
        self._closing = False
        self._refused = 0
        self._finished: Counter[FinishReason] = Counter()
        self._errors: Counter[str] = Counter()
        self._encoder = runner.image_encoder(self.options.image_cache_bytes)
        limits = self.options
        self._batch = runner.open_batch(
            limits.max_rows, limits.cache_bytes, limits.keep_prefixes, limits.prefill_chunk, limits.draft_tokens
        )
        loops = {"r1v-prepare": self._prepare_loop, "r1v-decode": self._decode_loop}
        self._threads = [threading.Thread(target=loop, name=name, daemon=True) for name, loop in loops.items()]
        for thread in self._threads:
            thread.start()

    def submit(
        self,
        request: Request | EncodedPrompt,
        sampling: Sampling | None = None,
        *,
        deliver: Deliver | None = None,
        deadline: float | None = None,
        request_id: str | None = None,
        client: str = "",
    ) -> Submission:
        """Queue a request; any thread may, and it does not block.

        Args:
            request: or a prompt whose images another process has encoded.
            sampling: `default_sampling` of the checkpoint if omitted.
            deliver: takes the events, on a thread of the runner; without it the submission is iterated.
            deadline: by `time.monotonic`, when the answer ends with what it has.
            request_id: for logs; a random one if omitted.
            client: whose turn a waiting request waits for.

        Raises:
            QueueFullError: as many requests wait as may.
            UsageError: the runner is closed.
            BundleError: no sampling is given, and generation_config.json has none that can be used.
        """
        sampling = sampling or default_sampling(self.runner.generation_config)
        submission = Submission(request_id or uuid.uuid4().hex, deliver, self._wake)
        with self._changed:
            if self._closing:
                raise UsageError("The runner is closed.", where=submission.request_id, fix="open another one")
            if self._queued + len(self._running) >= self.capacity:
                self._refused += 1
                raise QueueFullError(
                    QUEUE_FULL,
                    where=submission.request_id,
                    expected=f"at most {self.options.max_queued}, and {self.options.max_rows} that run",
                    fix="try again later",
                )
            self._queue.add(Job(submission, request, sampling, deadline, client))
            self._changed.notify_all()
        return submission

    @property
    def capacity(self) -> int:
        """Requests that are taken at a time, running and waiting."""
        return self.options.max_rows + self.options.max_queued

    @property
    def counted(self) -> frozenset[str]:
        """The fields of `stats` that are known: a library that decodes by itself keeps its cache to itself."""
        return frozenset(each.name for each in fields(BatchingStats)) - self._batch.uncounted

    def stats(self) -> BatchingStats:
        """What runs and waits now, and what has been counted."""
        encoder, counters, usage = self._encoder, self._batch.counters, self._batch.cache_usage()
        with self._changed:
            return BatchingStats(
                queued=self._queued,
                running=len(self._running),
                **usage._asdict(),
                cache_budget_bytes=self.options.cache_bytes,
                refused=self._refused,
                finished=dict(self._finished),
                errors=dict(self._errors),
                prompt_tokens=counters.prompt_tokens,
                reused_tokens=counters.reused_tokens,
                generated_tokens=counters.generated_tokens,
                prefix_hits=counters.prefix_hits,
                prefix_misses=counters.prefix_misses,
                preempted=counters.preempted,
                draft_tokens=counters.draft_tokens,
                accepted_tokens=counters.accepted_tokens,
                rows_per_step=counters.rows_per_step.copy(),
                image_cache_hits=encoder.hits,
                image_cache_misses=encoder.misses,
                image_cache_bytes=encoder.cache.bytes,
                image_cache_budget_bytes=self.options.image_cache_bytes,
                tiles_per_vision_batch=encoder.tiles_per_batch.copy(),
            )

    def close(self, drain: bool = True, timeout: float | None = None) -> None:
        """Refuse further requests, finish or cancel those that were taken, and end the threads. May be called again.

        Args:
            drain: finish them; else cancel them.
            timeout: seconds after which the unfinished ones are cancelled.
        """
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if drain:
            ends = None if timeout is None else time.monotonic() + timeout
            for thread in self._threads:
                thread.join(None if ends is None else max(0.0, ends - time.monotonic()))
        with self._changed:
            unfinished = [*self._waiting(), *self._running]
        for job in unfinished:
            job.submission.cancel()
        for thread in self._threads:
            thread.join()

    def __enter__(self) -> BatchingRunner:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.close(drain=error is None)

    @property
    def _queued(self) -> int:
        return len(self._queue) + len(self._preparing) + len(self._ready)

    def _waiting(self) -> list[Job]:
        """The requests that have no row."""
        return [*self._queue, *self._preparing, *self._ready]

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()

    # On the thread that prepares.

    def _prepare_loop(self) -> None:
        opened: list[Job] = []
        while self._wait_to_prepare():
            # One at least, so that a request without new images does not wait for the many of another; and as many as
            # fill a run of the vision graph.
            while (job := self._next_to_prepare()) is not None:
                with self._failing(job):
                    if isinstance(job.request, EncodedPrompt):
                        self._make_ready(job, job.request)
                    else:
                        job.opened = self.runner.open_prompt(job.request, self._encoder)
                        opened.append(job)
                if self._encoder.waiting >= self._encoder.tiles_per_run:
                    break
            with self._failing(*opened):
                self._encoder.run_batch()
            opened = [job for job in opened if not self._pass_on(job)]

    def _wait_to_prepare(self) -> bool:
        """Wait for something to do; False once nothing will come."""
        with self._changed:
            while not self._encoder.waiting and not (self._queue and self._has_place()):
                if self._closing and not self._queue:
                    return False
                self._changed.wait()
        return True

    def _has_place(self) -> bool:
        """Whether a further request may be prepared; prepared ones take the memory of their images."""
        return len(self._preparing) + len(self._ready) < self.options.max_rows

    def _next_to_prepare(self) -> Job | None:
        with self._changed:
            if not self._queue or not self._has_place():
                return None
            job = self._queue.pop()
            self._preparing.append(job)
            return job

    def _pass_on(self, job: Job) -> bool:
        """Give a prepared request to the other thread; whether this one has nothing more to do for it."""
        assert job.opened is not None
        if job.submission.done or job not in self._preparing:
            self._encoder.abandon(job.opened.images)
            return True
        if not job.opened.done:
            return False
        with self._failing(job):
            self._make_ready(job, job.opened.result())
        return True

    def _make_ready(self, job: Job, encoded: EncodedPrompt) -> None:
        """Give a request with its prompt to the other thread, unless it was given up meanwhile."""
        job.encoded = encoded
        job.stream = self.runner.stream(0, encoded, job.sampling)
        with self._changed:
            if job in self._preparing:
                self._preparing.remove(job)
                self._ready.append(job)
            self._changed.notify_all()

    # On the thread that decodes.

    def _decode_loop(self) -> None:
        while self._wait_to_decode():
            self._end_due()
            self._admit()
            with self._failing(*self._running):
                for state, event in self._batch.step():
                    self._push(next(job for job in self._running if job.state is state), event)
        self._batch.close()

    def _wait_to_decode(self) -> bool:
        """Wait for something to do; False once nothing will come."""
        with self._changed:
            while not self._running and not self._ready and not any(job.is_due() for job in self._waiting()):
                if self._closing and not self._queued:
                    return False
                deadlines = [job.deadline for job in self._waiting() if job.deadline is not None]
                self._changed.wait(max(0.0, min(deadlines) - time.monotonic()) if deadlines else None)
        return True

    def _end_due(self) -> None:
        """End the answers of requests that were cancelled, or whose deadline has passed."""
        with self._changed:
            due = [job for job in (*self._waiting(), *self._running) if job.is_due()]
        for job in due:
            reason = job.submission.given_up or "cancelled"
            if job.state is not None:
                self._push(job, self._batch.end(job.state, reason))
            else:
                self._push(job, TokenEvent(0, None, "", "", replace(CANCELLED_BEFORE_START, finish_reason=reason)))

    def _admit(self) -> None:
        """Give rows to the requests that are ready, in their order, as far as there are."""
        while self._ready:
            job = self._ready[0]
            with self._failing(job):
                assert job.encoded is not None
                assert job.stream is not None
                job.state = self._batch.admit(job.encoded, job.sampling, job.stream)
                if job.state is None:
                    return
                job.count_waiting()
                with self._changed:
                    self._ready.popleft()
                    self._running.append(job)
                    self._changed.notify_all()

    # On either.

    @contextmanager
    def _failing(self, *jobs: Job) -> Iterator[None]:
        """Let jobs fail with what is raised in the block. What is no R1VError is a defect, and is logged as one."""
        try:
            yield
        except R1VError as error:
            for job in jobs:
                self._push(job, error)
        except Exception as error:
            _LOG.exception("requests %s failed", ", ".join(job.submission.request_id for job in jobs))
            for job in jobs:
                self._push(job, GraphError("The runner failed.", where="runner", found=repr(error)))

    def _push(self, job: Job, event: TokenEvent | R1VError) -> None:
        """Give an event to a request's caller; its last one only once, and then the request is gone."""
        if isinstance(event, TokenEvent) and event.answer is None:
            job.submission.push(event)
            return
        with self._changed:
            if job in self._running:
                self._running.remove(job)
            elif job in self._ready:
                self._ready.remove(job)
            elif job in self._preparing:
                self._preparing.remove(job)
            elif job in self._queue:
                self._queue.remove(job)
            else:
                return
            if isinstance(event, R1VError):
                self._errors[type(event).__name__] += 1
            elif event.answer is not None:
                self._finished[event.answer.finish_reason] += 1
            self._changed.notify_all()
        if job.state is not None:
            self._batch.drop(job.state)
        ended_by = type(event).__name__ if isinstance(event, R1VError) else event.answer and event.answer.finish_reason
        message, request_id = "request %(request_id)s: ended by %(ended_by)s", job.submission.request_id
        log_event(_LOG, logging.DEBUG, message, request_id=request_id, ended_by=ended_by)
        job.submission.push(event)
