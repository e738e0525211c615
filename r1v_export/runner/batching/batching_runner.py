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
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from r1v_export.errors import GraphError, QueueFullError, R1VError, UsageError
from r1v_export.generation import FinishReason, Sampling
from r1v_export.log_event import log_event
from r1v_export.processing.generation_config import default_sampling
from r1v_export.runner.answer import Answer, TokenEvent
from r1v_export.runner.base import BaseRunner, Request
from r1v_export.runner.batching.options import BatchingOptions, BatchingStats
from r1v_export.runner.batching.submission import Deliver, Submission

_LOG = logging.getLogger(__name__)


@dataclass
class _Job:
    submission: Submission
    request: Request
    sampling: Sampling
    deadline: float | None
    cancel: threading.Event


class BatchingRunner:
    """Answers the requests of many callers over one model, see the module.

    Args:
        runner: over an engine, or over a library that decodes by itself. Nobody else may use it meanwhile.
        options: limits.
    """

    def __init__(self, runner: BaseRunner[Any], options: BatchingOptions | None = None) -> None:
        self.runner, self.options = runner, options or BatchingOptions()
        self._changed = threading.Condition()
        self._waiting: deque[_Job] = deque()
        self._running: _Job | None = None
        self._closing = False
        self._refused = self._prompt_tokens = self._generated_tokens = 0
        self._finished: Counter[FinishReason] = Counter()
        self._errors: Counter[str] = Counter()
        self._thread = threading.Thread(target=self._loop, name="r1v-decode", daemon=True)
        self._thread.start()

    def submit(
        self,
        request: Request,
        sampling: Sampling | None = None,
        *,
        deliver: Deliver | None = None,
        deadline: float | None = None,
        request_id: str | None = None,
        client: str = "",
    ) -> Submission:
        """Queue a request; any thread may, and it does not block.

        Args:
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
        cancel = threading.Event()
        submission = Submission(request_id or uuid.uuid4().hex, deliver, cancel.set)
        with self._changed:
            if self._closing:
                raise UsageError("The runner is closed.", where=submission.request_id)
            if len(self._waiting) >= self.options.max_queued:
                self._refused += 1
                raise QueueFullError(
                    "Too many requests are waiting.",
                    expected=f"at most {self.options.max_queued}",
                    fix="try again later",
                )
            self._waiting.append(_Job(submission, request, sampling, deadline, cancel))
            self._changed.notify_all()
        return submission

    def stats(self) -> BatchingStats:
        """What runs and waits now, and what has been counted."""
        with self._changed:
            return BatchingStats(
                queued=len(self._waiting),
                running=int(self._running is not None),
                rows=int(self._running is not None),
                cache_budget_bytes=self.options.cache_bytes,
                refused=self._refused,
                finished=dict(self._finished),
                errors=dict(self._errors),
                prompt_tokens=self._prompt_tokens,
                generated_tokens=self._generated_tokens,
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
            self._thread.join(timeout)
        with self._changed:
            jobs = [*self._waiting, *([self._running] if self._running else [])]
        for job in jobs:
            job.submission.cancel()
        self._thread.join()

    def __enter__(self) -> BatchingRunner:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.close(drain=error is None)

    def _loop(self) -> None:
        while True:
            with self._changed:
                self._running = None
                while not self._waiting:
                    if self._closing:
                        return
                    self._changed.wait()
                job = self._running = self._waiting.popleft()
            try:
                self._answer(job)
            except R1VError as error:
                self._fail(job, error)
            except Exception as error:
                _LOG.exception("request %s failed", job.submission.request_id)
                self._fail(job, GraphError("The runner failed.", where="runner", found=repr(error)))

    def _answer(self, job: _Job) -> None:
        for event in self.runner.generate([job.request], job.sampling, job.cancel):
            if job.deadline is not None and time.monotonic() >= job.deadline:
                job.submission.give_up("deadline")
            if event.answer is not None:
                event = TokenEvent(0, event.token_id, event.reasoning, event.text, self._count(job, event.answer))
            job.submission.push(event)

    def _count(self, job: _Job, answer: Answer) -> Answer:
        if answer.finish_reason == "cancelled" and job.submission.given_up == "deadline":
            answer = Answer(**{**vars(answer), "finish_reason": "deadline"})
        with self._changed:
            self._finished[answer.finish_reason] += 1
            self._prompt_tokens += answer.prompt_tokens
            self._generated_tokens += len(answer.token_ids)
        message = "request %(request_id)s: %(tokens)d tokens, ended by %(finish_reason)s"
        fields = {"tokens": len(answer.token_ids), "finish_reason": answer.finish_reason}
        log_event(_LOG, logging.DEBUG, message, request_id=job.submission.request_id, **fields)
        return answer

    def _fail(self, job: _Job, error: R1VError) -> None:
        with self._changed:
            self._errors[type(error).__name__] += 1
        job.submission.push(error)
