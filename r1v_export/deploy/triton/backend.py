"""The deployed models as what answers the requests of `r1v-export serve`: `serve --triton grpc://HOST:PORT`."""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from importlib.util import find_spec
from typing import Any

from r1v_export.deploy.triton.answer_reader import AnswerReader
from r1v_export.deploy.triton.grpc_messages import STREAM_METHOD, infer_request, stream_response
from r1v_export.deploy.triton.question import model_inputs
from r1v_export.deploy.triton.tensors import ORCHESTRATOR
from r1v_export.errors import (
    BackendError,
    CapabilityError,
    GraphError,
    InputError,
    QueueFullError,
    R1VError,
    UsageError,
)
from r1v_export.extras import install_command
from r1v_export.generation import FinishReason, Sampling
from r1v_export.log_event import log_event
from r1v_export.runner.answer import TokenEvent
from r1v_export.runner.batching.batching_runner import QUEUE_FULL
from r1v_export.runner.batching.options import BatchingStats
from r1v_export.runner.batching.submission import Deliver, Submission
from r1v_export.runner.prompt_encoder import PromptEncoder, Request

SCHEME = "grpc://"
_STATUS_ERRORS = (("triton_grpc_error", "true"),)
"""Header with which Triton ends a stream by an error's status; without it an error is a message alone."""
_NO_MODEL = ("has no available versions", "is not found", "is not ready", "is not healthy")
"""What Triton says of a model that is not loaded, or whose process has died; its status is that of any error."""
_UNLIMITED = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]

_LOG = logging.getLogger(__name__)


_LISTENER_S = 1.0
"""How long an address may take to answer at all when the server starts."""


class TritonBackend:
    """Answers requests with the models that `deploy triton` wrote, on a Triton server. A `serve.backend.Backend`.

    A thread of its own has an event loop, on which each request is a gRPC stream.

    Args:
        url: `grpc://HOST:PORT` of the server.
        prompts: of the same bundle as the server's.

    Raises:
        UsageError: the URL is another.
        CapabilityError: grpcio is not installed.
    """

    capacity = None
    counted = ("running", "refused", "finished", "errors", "prompt_tokens", "reused_tokens", "generated_tokens")

    def __init__(self, url: str, prompts: PromptEncoder) -> None:
        self.address = _address(url)
        if find_spec("grpc") is None:
            fix = install_command("triton")
            raise CapabilityError("A Triton server is asked with grpcio.", found="no grpc", fix=fix)
        self.runner, self.url = prompts, url
        self._lock = threading.Lock()
        self._tasks: dict[Submission, asyncio.Task[None]] = {}
        self._closing, self.lost_at = False, float("-inf")
        self._refused = self._prompt_tokens = self._reused_tokens = self._generated_tokens = 0
        self._finished: Counter[FinishReason] = Counter()
        self._errors: Counter[str] = Counter()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="r1v-triton", daemon=True)
        self._thread.start()
        self._channel = asyncio.run_coroutine_threadsafe(_open_channel(self.address), self._loop).result()
        self._watch = asyncio.run_coroutine_threadsafe(self._note_losses(), self._loop)

    def submit(
        self,
        request: Request,
        sampling: Sampling,
        *,
        deliver: Deliver,
        deadline: float,
        request_id: str,
        client: str = "",
    ) -> Submission:
        """Send a request; any thread may, and it does not block.

        Args:
            client: not used: Triton has one queue.

        Raises:
            UsageError: the backend is closed.
        """
        if self._closing:
            raise UsageError("The server is closed.", where=request_id, fix="start it again")
        answer = AnswerReader()
        submission = Submission(request_id, deliver, lambda: self._run(self._cancel, submission))

        def start() -> None:
            task = self._loop.create_task(self._answer(submission, answer, request, sampling, deadline))
            self._tasks[submission] = task
            task.add_done_callback(lambda _: self._end(submission, answer))

        self._run(start)
        return submission

    def stats(self) -> BatchingStats:
        """What is under way, and what was counted here; caches and batches are Triton's, whose `/metrics` has them."""
        with self._lock:
            return BatchingStats(
                running=len(self._tasks),
                refused=self._refused,
                finished=dict(self._finished),
                errors=dict(self._errors),
                prompt_tokens=self._prompt_tokens,
                reused_tokens=self._reused_tokens,
                generated_tokens=self._generated_tokens,
            )

    def close(self, drain: bool = True) -> None:
        """Take no further request, finish those under way (`drain`) or cancel them, and leave the server."""
        self._closing = True
        if self._thread.is_alive():
            asyncio.run_coroutine_threadsafe(self._close(drain), self._loop).result()
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    def _run(self, call: Callable[..., None], *arguments: object) -> None:
        """Have the loop's thread call something, in the order of the calls; nothing once it has ended."""
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(call, *arguments)

    def _cancel(self, submission: Submission) -> None:
        if submission in self._tasks:
            self._tasks[submission].cancel()

    async def _close(self, drain: bool) -> None:
        tasks = list(self._tasks.values())
        for task in tasks:
            if not drain:
                task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._watch.cancel()
        await self._channel.close()

    async def _note_losses(self) -> None:
        """Note when a connection to the server ends, whoever ends it."""
        import grpc

        while True:
            state = self._channel.get_state()
            await self._channel.wait_for_state_change(state)
            if state is grpc.ChannelConnectivity.READY:
                self.lost_at = time.monotonic()

    async def _answer(
        self, submission: Submission, answer: AnswerReader, request: Request, sampling: Sampling, deadline: float
    ) -> None:
        try:
            inputs = await asyncio.to_thread(model_inputs, request, sampling)
            message = infer_request(ORCHESTRATOR, submission.request_id, inputs)
            async for content in self._stream(message, deadline - time.monotonic()):
                error, outputs = stream_response(content)
                if error:
                    raise self._error("UNKNOWN", error)
                for event in answer.read(outputs):
                    self._push(submission, event)
            if not answer.ended:
                raise GraphError("Triton ended an answer without saying why.", where=self.url)
        except TimeoutError:
            submission.give_up("deadline")
        except R1VError as error:
            if isinstance(error, GraphError | BackendError):
                text, request_id = "request %(request_id)s: %(error)s", submission.request_id
                log_event(_LOG, logging.WARNING, text, request_id=request_id, error=str(error))
            self._push(submission, error)
        except Exception as error:
            _LOG.exception("request %s failed", submission.request_id)
            self._push(submission, GraphError("The request to Triton failed.", where=self.url, found=repr(error)))

    async def _stream(self, message: bytes, seconds: float) -> AsyncIterator[bytes]:
        """The serialized responses to a request.

        Raises:
            TimeoutError: there are more after `seconds`.
            R1VError: Triton's error, or that there is no Triton.
        """
        import grpc

        call = self._channel.stream_stream(STREAM_METHOD)(metadata=_STATUS_ERRORS, timeout=max(0.0, seconds))
        try:
            await call.write(message)
            await call.done_writing()
            async for content in call:
                yield content
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                raise TimeoutError from error
            raise self._error(error.code().name, error.details() or "") from error
        finally:
            call.cancel()

    def _error(self, status: str, details: str) -> R1VError:
        """The error of ours that a gRPC status is."""
        if QUEUE_FULL in details:
            return QueueFullError(QUEUE_FULL, fix="try again later")
        if status == "INVALID_ARGUMENT":
            return InputError(details.removeprefix("INVALID_ARG: "))
        if status in ("INTERNAL", "UNKNOWN") and not any(text in details for text in _NO_MODEL):
            return GraphError("The model failed on Triton.", where=self.url, found=details)
        return BackendError(
            "Triton does not answer.",
            where=self.url,
            found=f"{status}: {details}",
            fix="start the deployment's tritonserver, load its models, and check --triton; /ready says when it answers",
        )

    def _push(self, submission: Submission, event: TokenEvent | R1VError) -> None:
        if submission.done:
            return
        with self._lock:
            if isinstance(event, R1VError):
                self._refused += isinstance(event, QueueFullError)
                self._errors[type(event).__name__] += 1
            else:
                self._generated_tokens += event.token_id is not None
                if event.answer is not None:
                    self._finished[event.answer.finish_reason] += 1
                    self._prompt_tokens += event.answer.prompt_tokens
                    self._reused_tokens += event.answer.reused_tokens
        submission.push(event)

    def _end(self, submission: Submission, answer: AnswerReader) -> None:
        """End the answer of a task that is over; one that was cancelled has no last event yet."""
        self._push(submission, TokenEvent(0, None, "", "", answer.end(submission.given_up or "cancelled")))
        with self._lock:
            del self._tasks[submission]


def _address(url: str) -> str:
    host, _, port = url.removeprefix(SCHEME).rpartition(":")
    if not url.startswith(SCHEME) or not host or not port.isdecimal():
        expected = f"{SCHEME}HOST:PORT, where PORT is tritonserver's --grpc-port"
        raise UsageError(
            "This is no address of a Triton server.",
            where="--triton",
            expected=expected,
            found=url,
            fix=f"pass such as {SCHEME}localhost:8001",
        )
    return f"{host}:{port}"


def listens(url: str) -> bool:
    """Whether anything does at the address of a Triton server; it may be started later."""
    host, _, port = _address(url).rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_LISTENER_S).close()
    except (OSError, OverflowError):
        return False
    return True


async def _open_channel(address: str) -> Any:
    """A channel connects when it is used, again whenever it has to."""
    import grpc.aio

    return grpc.aio.insecure_channel(address, options=_UNLIMITED)
