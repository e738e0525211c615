"""Errors in the shape of the OpenAI API: `{"error": {"message", "type", "param", "code"}}` and an HTTP status."""

from __future__ import annotations

from http import HTTPStatus

from fastapi import HTTPException
from fastapi.responses import JSONResponse

from r1v_export.errors import BackendError, CapabilityError, InputError, QueueFullError, R1VError, UsageError
from r1v_export.serve.protocol import JsonObject

_TYPES = {
    HTTPStatus.UNAUTHORIZED: "authentication_error",
    HTTPStatus.TOO_MANY_REQUESTS: "rate_limit_error",
}


class ServeError(HTTPException):
    """A request that ends without an answer.

    It is one of FastAPI's exceptions, because others that are raised while a body is read become "bad request".

    Args:
        status: HTTP status.
        message: what is wrong and what to do, for the client.
        code: names the kind of failure, for programs.
        param: the field that is wrong, if it is one.
    """

    def __init__(self, status: HTTPStatus, message: str, code: str, param: str | None = None) -> None:
        super().__init__(status, message)
        self.status, self.message, self.code, self.param = status, message, code, param

    @property
    def type(self) -> str:
        """Class of the error, as the OpenAI API names them."""
        if self.status in _TYPES:
            return _TYPES[self.status]
        return "invalid_request_error" if self.status < HTTPStatus.INTERNAL_SERVER_ERROR else "server_error"

    @property
    def body(self) -> JsonObject:
        """The JSON of a response, or of an event in a stream."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}

    @property
    def response(self) -> JSONResponse:
        """What the client is sent."""
        return JSONResponse(self.body, self.status, self._headers)

    @property
    def _headers(self) -> dict[str, str]:
        if self.status is HTTPStatus.UNAUTHORIZED:
            return {"WWW-Authenticate": "Bearer"}
        retry = self.status in (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE)
        return {"Retry-After": "1"} if retry else {}


def serve_error(error: R1VError) -> ServeError:
    """The failure that an error of ours is to a client. Errors of the server tell no paths."""
    message = _one_line(error)
    if isinstance(error, QueueFullError):
        return ServeError(HTTPStatus.TOO_MANY_REQUESTS, message, "queue_full")
    if isinstance(error, InputError | UsageError):
        return ServeError(HTTPStatus.BAD_REQUEST, message, "invalid_input")
    if isinstance(error, BackendError):
        return ServeError(HTTPStatus.SERVICE_UNAVAILABLE, message, "backend_unavailable")
    if isinstance(error, CapabilityError):
        return ServeError(HTTPStatus.SERVICE_UNAVAILABLE, error.what, "unavailable")
    return ServeError(HTTPStatus.INTERNAL_SERVER_ERROR, error.what, "engine_error")


def _one_line(error: R1VError) -> str:
    """An error as a paragraph: what is wrong, then its details, set apart by semicolons."""
    shown = error.as_dict()
    details = [f"{name}: {shown[name]}" for name in ("where", "expected", "found", "fix") if shown[name] is not None]
    return " ".join(f"{shown['what']} {'; '.join(details)}".split())


def too_long(seconds: float) -> ServeError:
    """The failure of a request that takes longer than the server allows."""
    message = f"The answer was not finished within {seconds:g} s, this server's limit. Ask for fewer tokens."
    return ServeError(HTTPStatus.GATEWAY_TIMEOUT, message, "timeout")


def stopping() -> ServeError:
    """The failure of a request that is unfinished when the server ends."""
    message = "The server was stopped before the answer was finished. Send the request again."
    return ServeError(HTTPStatus.SERVICE_UNAVAILABLE, message, "server_stopped")
