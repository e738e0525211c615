"""What is wrong with a request's body, and what to send instead: errors of pydantic in the words of the OpenAI API."""

from __future__ import annotations

from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

from fastapi.exceptions import RequestValidationError

from r1v_export.quoting import did_you_mean, shorten_text, shorten_value
from r1v_export.serve.errors import ServeError
from r1v_export.serve.protocol import TOKEN_ID_PATTERN, ChatRequest, CompletionRequest
from r1v_export.strict import expected_words, without_labels

_FIELDS = {**CompletionRequest.model_fields, **ChatRequest.model_fields}
"""Of the bodies of both completion routes, by name."""

_SEND_JSON = "send one JSON object, in UTF-8"
_MAX_CHARACTERS = 1000
"""Of a message: names of fields come from the client."""


def invalid_body(error: RequestValidationError) -> ServeError:
    """The failure of a body that is no JSON, or of its first field that is wrong."""
    details = error.errors()
    first = _deepest(details, error.body)
    place = _place(first, error.body)
    if first["type"] == "json_invalid":
        cause = first.get("ctx", {}).get("error", "it cannot be read")
        message = f"The body is not JSON: {cause}, at character {first['loc'][-1]}; {_SEND_JSON}."
        return ServeError(HTTPStatus.BAD_REQUEST, message, "invalid_json")
    param = ".".join(map(str, place)) or None
    if first["type"] == "extra_forbidden":
        meant = did_you_mean(str(place[-1]), _FIELDS) if len(place) == 1 else None
        message = f"Unknown parameter: {param}. It would have no effect: omit it{f'; {meant}' if meant else '.'}"
        return ServeError(HTTPStatus.BAD_REQUEST, shorten_text(message, _MAX_CHARACTERS), "unknown_parameter", param)
    if param is None and first["type"] == "missing":
        message = f"The body is empty; {_SEND_JSON}."
    elif param is None and first["type"] == "model_attributes_type":
        message = "The body is no JSON object, or was not sent as one: add the header Content-Type: application/json."
    elif first["type"] == "missing":
        value = ": GET /v1/models names it" if param == "model" else ""
        message = f"{param} is missing; add it{value}."
    else:
        same = [detail for detail in details if _place(detail, error.body) == place]
        message = f"{param or 'The body'}: {_problem(same, place)}."
    return ServeError(HTTPStatus.BAD_REQUEST, shorten_text(message, _MAX_CHARACTERS), "invalid_value", param)


def unreadable_body() -> ServeError:
    """The failure of a body that FastAPI's JSON reader gave up on."""
    message = f"The body is not JSON: it is not UTF-8, or nested too deeply; {_SEND_JSON}."
    return ServeError(HTTPStatus.BAD_REQUEST, message, "invalid_json")


def _deepest(details: Sequence[Any], body: Any) -> Any:
    """The first error, or one further inside: of a list where a text could be, its wrong item says more."""
    place = _place(details[0], body)
    inside = (detail for detail in details if _place(detail, body)[: len(place)] == place != _place(detail, body))
    return next(inside, details[0])


def _place(detail: Any, body: Any) -> tuple[str | int, ...]:
    """Where in the body an error of pydantic is."""
    parts = detail["loc"][1:] if detail["loc"][:1] == ("body",) else detail["loc"]
    return without_labels(parts, body, missing=detail["type"] == "missing")


def _problem(details: Sequence[Any], place: Sequence[str | int]) -> str:
    """What a field of a body takes, what is there, and what to send, by the errors of all types that it can have."""
    detail = details[0]
    kind, context = detail["type"], detail.get("ctx", {})
    if kind == "value_error":  # says itself what to do
        return str(detail["msg"].removeprefix("Value error, "))
    if kind == "union_tag_not_found":
        return f"{context['discriminator']} is missing; add it"
    if kind == "union_tag_invalid":
        expected = f"{context['discriminator']} as one of {context['expected_tags']}"
        return f"expected {expected}, found {context['tag']!r:.80}; send one of these"
    if context.get("pattern") == TOKEN_ID_PATTERN:
        return f"expected the number of a token as the key, found {shorten_value(detail['input'])}; send such a key"
    field = _FIELDS.get(str(place[0])) if place else None
    omitted = f", or omit {place[0]}" if field is not None and not field.is_required() else ""
    expected = " or ".join(dict.fromkeys(map(expected_words, details)))
    return f"expected {expected}, found {shorten_value(detail['input'])}; send such a value{omitted}"
