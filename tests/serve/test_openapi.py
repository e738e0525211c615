"""Requests that schemathesis makes from the application's own OpenAPI document, sound ones and broken ones."""

from __future__ import annotations

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode

from r1v_export.serve.settings import Limits
from tests.serve.conftest import serving

REQUESTS_PER_ROUTE = 20
ROUTES = {
    "GET /health": 0,
    "GET /ready": 0,
    "GET /metrics": 0,
    "GET /v1/models": 0,
    "GET /v1/models/{name}": 0,
    "POST /v1/chat/completions": 1,
    "POST /v1/completions": 1,
    "POST /tokenize": 1,
}
"""Route -> whether it takes a body."""


@pytest.fixture(scope="module")
def schema(runner):
    with serving(runner, Limits(new_tokens=4)) as client:
        yield schemathesis.openapi.from_asgi("/openapi.json", client.app)


def test_the_document_has_every_route(schema):
    assert {operation.ok().label for operation in schema.get_all_operations()} == ROUTES.keys()


@pytest.mark.parametrize("mode", list(GenerationMode))
@pytest.mark.parametrize("route", [route for route, has_body in ROUTES.items() if has_body])
def test_no_request_breaks_the_server(schema, route, mode):
    operation = next(found.ok() for found in schema.get_all_operations() if found.ok().label == route)

    @given(case=operation.as_strategy(generation_mode=mode))
    @settings(max_examples=REQUESTS_PER_ROUTE, deadline=None, suppress_health_check=list(HealthCheck))
    def check(case):
        response = case.call()
        assert response.status_code < 500, response.text
        if response.status_code >= 400:
            assert response.json()["error"]["message"]

    check()
