"""What every request passes before its route: an id, the key, the size of its body; and the line in the access log."""

from __future__ import annotations

import asyncio
import hmac
import logging
import re
import time
import uuid
from http import HTTPStatus

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from r1v_export.count import Count
from r1v_export.log_event import log_event
from r1v_export.serve.errors import ServeError, stopping
from r1v_export.serve.metrics import ServerMetrics
from r1v_export.serve.responses import DONE, sse
from r1v_export.serve.settings import Limits, ServerSettings

_LOG = logging.getLogger(__name__)

OPEN_PATHS = ("/", "/health", "/ready", "/metrics")
"""Paths that need no key; so do those below `/static/`."""

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


class Gate:
    """ASGI middleware in front of all routes.

    `scope["state"]` gets `request_id`, taken from X-Request-Id where that can be logged, and `client`, by which waiting
    requests take turns. Routes add what the access log is to say about the answer to `scope["state"]["log"]`: counts,
    never content.
    """

    def __init__(self, app: ASGIApp, settings: ServerSettings, metrics: ServerMetrics) -> None:
        self.app, self.settings, self.metrics = app, settings, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        given = headers.get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        key, address = _bearer(headers), (scope.get("client") or ("",))[0]
        state = scope.setdefault("state", {})
        state |= {"request_id": request_id, "client": key or address, "log": {}}
        start, status = time.monotonic(), 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", request_id.encode())]
            await send(message)

        try:
            self._admit(scope["path"], headers, key)
            await self.app(scope, _Limited(receive, self.settings.limits), send_with_id)
        except ServeError as failure:
            await failure.response(scope, receive, send_with_id)
            self.metrics.errors.labels(failure.code).inc()
        except asyncio.CancelledError:  # By uvicorn, of what is unfinished when the time to drain is over.
            stopped = stopping()
            self.metrics.errors.labels(stopped.code).inc()
            if status == 0:
                await stopped.response(scope, receive, send_with_id)
            else:  # Only streams take long once they have begun.
                await send({"type": "http.response.body", "body": (sse(stopped.body) + DONE).encode()})
        finally:
            self._record(scope, status, time.monotonic() - start)

    def _admit(self, path: str, headers: dict[str, str], key: str) -> None:
        keys, limit = self.settings.api_keys, self.settings.limits.body_bytes
        is_open = path in OPEN_PATHS or path.startswith("/static/")
        if keys and not is_open and not any(hmac.compare_digest(key.encode(), known.encode()) for known in keys):
            message = "This server needs an API key: send `Authorization: Bearer KEY`."
            raise ServeError(HTTPStatus.UNAUTHORIZED, message, "invalid_api_key")
        length = headers.get("content-length", "")
        if length.isdecimal() and int(length) > limit:
            raise _too_large(limit)

    def _record(self, scope: Scope, status: int, seconds: float) -> None:
        route = scope.get("route")
        path = getattr(route, "path", "other")
        self.metrics.responses.labels(path, str(status)).inc()
        fields = {
            "request_id": scope["state"]["request_id"],
            "method": scope["method"],
            "path": path,
            "status": status,
            "seconds": round(seconds, 4),
            **scope["state"]["log"],
        }
        log_event(_LOG, logging.INFO, " ".join(f"{name}=%({name})s" for name in fields), **fields)


class _Limited:
    """A request's body, up to a limit of bytes, whose pieces do not keep the server waiting."""

    def __init__(self, receive: Receive, limits: Limits) -> None:
        self._receive, self._limits = receive, limits
        self._bytes, self._whole = 0, False

    async def __call__(self) -> Message:
        if self._whole:  # What follows is the end of the connection, whenever it comes.
            return await self._receive()
        try:
            message = await asyncio.wait_for(self._receive(), self._limits.body_seconds)
        except TimeoutError:
            raise _stalled(self._limits.body_seconds) from None
        self._whole = not message.get("more_body", False)
        self._bytes += len(message.get("body", b""))
        if self._bytes > self._limits.body_bytes:
            raise _too_large(self._limits.body_bytes)
        return message


def _bearer(headers: dict[str, str]) -> str:
    scheme, _, key = headers.get("authorization", "").partition(" ")
    return key.strip() if scheme.lower() == "bearer" else ""


def _too_large(limit: int) -> ServeError:
    message = f"The request is larger than {Count(limit, 'byte')}, this server's limit. Send smaller or fewer images."
    return ServeError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, message, "request_too_large")


def _stalled(seconds: float) -> ServeError:
    message = f"No more of the request's body came for {seconds:g} s. Send it without a pause."
    return ServeError(HTTPStatus.REQUEST_TIMEOUT, message, "request_stalled")
