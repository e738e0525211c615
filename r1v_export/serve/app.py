"""The routes of `r1v-export serve`."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Coroutine, Sequence
from contextlib import aclosing, asynccontextmanager
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Any, TypeVar

from fastapi import FastAPI, Response
from fastapi import Request as HttpRequest
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, StreamingResponse
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException

from r1v_export.count import Count
from r1v_export.errors import R1VError
from r1v_export.generation import Sampling
from r1v_export.quoting import shorten_text
from r1v_export.runner.answer import Answer
from r1v_export.runner.prompt_encoder import Request
from r1v_export.serve.answering import Answering
from r1v_export.serve.backend import Backend
from r1v_export.serve.conversation import count_images, to_request
from r1v_export.serve.errors import ServeError, serve_error
from r1v_export.serve.gate import Gate
from r1v_export.serve.images import load_request_image
from r1v_export.serve.invalid_request import invalid_body, unreadable_body
from r1v_export.serve.metrics import CONTENT_TYPE, ServerMetrics
from r1v_export.serve.protocol import (
    ChatRequest,
    CompletionRequest,
    ErrorBody,
    JsonObject,
    Message,
    SamplingFields,
    TokenizeRequest,
)
from r1v_export.serve.responses import DONE, Head, sse
from r1v_export.serve.settings import ServerSettings
from r1v_export.version import VERSION

_LOG = logging.getLogger(__name__)
_STATIC = Path(__file__).parent / "static"
_PAGE_POLICY = "default-src 'self'; img-src 'self' blob: data:; frame-ancestors 'none'"
_ERRORS: dict[int | str, dict[str, Any]] = {"4XX": {"model": ErrorBody}, "5XX": {"model": ErrorBody}}
"""What the OpenAPI document says of errors."""
_ROUTES = "GET /v1/models, POST /v1/chat/completions, POST /v1/completions and POST /tokenize"
"""What clients of the API may ask for."""
_CLIENT_GONE = 499
"""Status in the log of a request whose client went away, as nginx has it."""

T = TypeVar("T")


def create_app(backend: Backend, settings: ServerSettings) -> FastAPI:
    """The application over what answers, which is closed when the application ends.

    Args:
        backend: takes the requests.
        settings: of the server.
    """
    metrics = ServerMetrics(backend.stats, backend.counted)
    pipeline = backend.runner.pipeline
    answering = Answering(backend, pipeline.generation_config, pipeline.positions.max_positions, settings, metrics)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(backend.close, drain=False)

    app = FastAPI(
        title="r1v-export", version=VERSION, lifespan=lifespan, docs_url=None, redoc_url=None, redirect_slashes=False
    )
    app.add_middleware(Gate, settings=settings, metrics=metrics)
    app.mount("/static", StaticFiles(directory=_STATIC), name="static")
    _add_error_handlers(app, metrics)
    _add_probes(app, answering, metrics)
    _add_routes(app, Routes(answering, settings))
    return app


def _add_error_handlers(app: FastAPI, metrics: ServerMetrics) -> None:
    def respond(failure: ServeError) -> Response:
        metrics.errors.labels(failure.code).inc()
        return failure.response

    @app.exception_handler(ServeError)
    async def failed(_: HttpRequest, failure: ServeError) -> Response:
        return respond(failure)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: HttpRequest, error: RequestValidationError) -> Response:
        return respond(invalid_body(error))

    @app.exception_handler(HTTPException)
    async def refused(http: HttpRequest, error: HTTPException) -> Response:
        return respond(_http_error(HTTPStatus(error.status_code), str(error.detail), http))

    @app.exception_handler(Exception)
    async def broken(request: HttpRequest, error: Exception) -> Response:
        _LOG.error("request %s failed", request.state.request_id, exc_info=error)
        message = f"The server failed; its log says why, at request {request.state.request_id}."
        return respond(ServeError(HTTPStatus.INTERNAL_SERVER_ERROR, message, "internal_error"))


def _http_error(status: HTTPStatus, detail: str, http: HttpRequest) -> ServeError:
    """The failure that an exception of the framework is: no such path, or a method that a path does not have."""
    if status is HTTPStatus.BAD_REQUEST:  # FastAPI's, of a body that its JSON reader gave up on.
        return unreadable_body()
    if status in (HTTPStatus.NOT_FOUND, HTTPStatus.METHOD_NOT_ALLOWED):
        asked = shorten_text(f"{http.method} {http.url.path}")
        detail = f"This server has no {asked}; it has {_ROUTES}."
    return ServeError(status, detail, status.name.lower())


def _add_probes(app: FastAPI, answering: Answering, metrics: ServerMetrics) -> None:
    @app.get("/health")
    async def health() -> JsonObject:
        """The process is alive."""
        return {"status": "alive"}

    @app.get("/ready")
    async def ready() -> Response:
        """A real token was produced just now."""
        cause = await answering.why_not_ready()
        if cause is None:
            return JSONResponse({"status": "ready"})
        return JSONResponse({"status": "no token was produced", "cause": cause}, HTTPStatus.SERVICE_UNAVAILABLE)

    @app.get("/metrics")
    async def read_metrics() -> Response:
        """Counters for Prometheus."""
        return Response(metrics.text(), headers={"Content-Type": CONTENT_TYPE})

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return FileResponse(_STATIC / "index.html", headers={"Content-Security-Policy": _PAGE_POLICY})


def _add_routes(app: FastAPI, routes: Routes) -> None:
    app.get("/v1/models")(routes.models)
    app.get("/v1/models/{name:path}", responses=_ERRORS)(routes.model)
    app.post("/v1/chat/completions", responses=_ERRORS, response_model=None)(routes.chat)
    app.post("/v1/completions", responses=_ERRORS, response_model=None)(routes.completion)
    app.post("/tokenize", responses=_ERRORS)(routes.tokenize)


class Routes:
    """The routes that answer.

    Args:
        answering: takes their requests.
        settings: of the server.
    """

    def __init__(self, answering: Answering, settings: ServerSettings) -> None:
        self.answering, self.settings = answering, settings
        self.prompts = answering.backend.runner

    async def models(self) -> JsonObject:
        """The served model."""
        return {"object": "list", "data": [self._model()]}

    async def model(self, name: str) -> JsonObject:
        """The served model, by its name."""
        self._require_model(name)
        return self._model()

    async def chat(self, body: ChatRequest, http: HttpRequest) -> Response:
        """Answer a conversation, streamed or whole."""
        self._require_model(body.model)
        samplings = self.answering.samplings(body)
        request = await self._conversation(body.messages, body.thinks)
        http.state.log["images"] = len(request.images)
        return await self._respond(request, samplings, body, http, chat=True)

    async def completion(self, body: CompletionRequest, http: HttpRequest) -> Response:
        """Continue a text."""
        self._require_model(body.model)
        samplings = self.answering.samplings(body)
        return await self._respond(Request.continuation(body.prompt), samplings, body, http, chat=False)

    async def tokenize(self, body: TokenizeRequest) -> JsonObject:
        """The token ids of a text, or of a conversation's prompt with its image tokens."""
        self._require_model(body.model or self.settings.model)
        if (body.prompt is None) == (body.messages is None):
            message = "Give either `prompt`, a text, or `messages`, a conversation."
            raise ServeError(HTTPStatus.BAD_REQUEST, message, "invalid_value", "prompt")
        if body.prompt is not None:
            request = Request.continuation(body.prompt)
        else:
            request = await self._conversation(body.messages or [], body.enable_thinking)
        ids = await _ours(asyncio.to_thread(self.prompts.tokenize, request))
        return {"count": len(ids), "max_model_len": self.prompts.max_positions, "tokens": ids}

    def _model(self) -> JsonObject:
        maximum = self.prompts.max_positions
        return {
            "id": self.settings.model,
            "object": "model",
            "created": 0,
            "owned_by": "r1v-export",
            "max_model_len": maximum,
        }

    def _require_model(self, name: str) -> None:
        if name != self.settings.model:
            message = f"The model {name[:200]!r} does not exist here; send {self.settings.model!r}."
            raise ServeError(HTTPStatus.NOT_FOUND, message, "model_not_found", "model")

    async def _conversation(self, messages: Sequence[Message], think: bool) -> Request:
        shown, limit = count_images(messages), self.settings.limits.images
        if shown > limit:
            message = f"A request may have at most {Count(limit, 'image')} here, and {shown} were sent. Send fewer."
            raise ServeError(HTTPStatus.BAD_REQUEST, message, "too_many_images", "messages")
        load = partial(load_request_image, policy=self.prompts.image_policy, settings=self.settings)
        tags = self.prompts.pipeline.reasoning.pair
        return await _ours(asyncio.to_thread(to_request, messages, load, think, tags))

    async def _respond(
        self, request: Request, samplings: Sequence[Sampling], body: SamplingFields, http: HttpRequest, *, chat: bool
    ) -> Response:
        name = ("chatcmpl-" if chat else "cmpl-") + uuid.uuid4().hex
        head = Head(name, self.settings.model, chat, self.prompts.tokenizer.token_bytes)
        if body.stream:
            stream = self._stream(head, request, samplings, body.includes_usage, http)
            # What is wrong with a request is known before the status is sent.
            first = await _while_connected(http, anext(stream))
            if first is None:
                return Response(status_code=_CLIENT_GONE)
            return StreamingResponse(_chain(first, stream), media_type="text/event-stream", headers=_NO_BUFFERING)
        state = http.state
        answers = await _while_connected(
            http, self.answering.answers(request, samplings, state.request_id, state.client)
        )
        if answers is None:
            return Response(status_code=_CLIENT_GONE)
        _log_answers(http, answers)
        return JSONResponse(head.whole(answers))

    async def _stream(
        self, head: Head, request: Request, samplings: Sequence[Sampling], with_usage: bool, http: HttpRequest
    ) -> AsyncGenerator[str, None]:
        answers: dict[int, Answer] = {}
        opened: set[int] = set()
        in_answer: set[int] = set()
        state = http.state
        try:
            async with aclosing(self.answering.events(request, samplings, state.request_id, state.client)) as events:
                async for event in events:
                    if head.chat and event.request not in opened:
                        opened.add(event.request)
                        yield sse(head.opening(event.request))
                    if event.text:
                        in_answer.add(event.request)
                    if event.reasoning or event.text or event.logprobs is not None:
                        yield sse(head.piece(event, event.request in in_answer))
                    if event.answer is not None:
                        answers[event.request] = event.answer
                        yield sse(head.ending(event.request, event.answer))
        except ServeError as failure:
            if not opened:
                raise
            self.answering.metrics.errors.labels(failure.code).inc()
            yield sse(failure.body)
        else:
            if with_usage:
                yield sse(head.usage_event(list(answers.values())))
            _log_answers(http, list(answers.values()))
        yield DONE


_NO_BUFFERING = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


async def _chain(first: str, rest: AsyncGenerator[str, None]) -> AsyncIterator[str]:
    async with aclosing(rest):
        yield first
        async for event in rest:
            yield event


async def _ours(work: Coroutine[Any, Any, T]) -> T:
    """Await work whose errors are the client's."""
    try:
        return await work
    except R1VError as error:
        raise serve_error(error) from error


async def _while_connected(http: HttpRequest, work: Awaitable[T]) -> T | None:
    """The result of work, or None once the client has gone; the work is cancelled then."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnected(http))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else None
    finally:
        gone.cancel()
        task.cancel()


async def _disconnected(http: HttpRequest) -> None:
    while (await http.receive())["type"] != "http.disconnect":
        pass


def _log_answers(http: HttpRequest, answers: Sequence[Answer]) -> None:
    http.state.log |= {
        "prompt_tokens": answers[0].prompt_tokens,
        "reused_tokens": answers[0].reused_tokens,
        "completion_tokens": sum(len(answer.token_ids) for answer in answers),
        "finish_reason": ",".join(answer.finish_reason for answer in answers),
    }
