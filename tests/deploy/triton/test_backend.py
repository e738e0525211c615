"""`serve --triton`: the server's front over a real tritonserver, asked by the official client."""

from __future__ import annotations

import time

import httpx
import openai
import pytest
from click.testing import CliRunner

from r1v_export.cli.serve import command
from r1v_export.errors import UsageError
from tests.deploy.triton.conftest import start_triton
from tests.deploy.triton.front import Front, alone, ask, client, front, prompts_folder, start_server
from tests.serve.conftest import Server, messages

__all__ = ["alone", "client", "front", "prompts_folder", "start_server"]

pytestmark = pytest.mark.triton


class TestFront(Front):
    """Over the Python models."""


def test_an_answer_that_takes_too_long_is_a_timeout(triton, prompts_folder):
    server = Server(prompts_folder, "--triton", f"grpc://127.0.0.1:{triton.grpc}", "--max-seconds", "0.02")
    try:
        body = {"model": "nano", "messages": messages(None, "Hi"), "ignore_eos": True, "max_tokens": 3000}
        response = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=60)
    finally:
        server.stop()
    assert (response.status_code, response.json()["error"]["code"]) == (504, "timeout")


def test_metrics_are_those_that_the_front_knows(client, front):
    ask(client, None, "Hi", max_tokens=3)
    text = httpx.get(f"{front.url}/metrics").text
    assert "r1v_generated_tokens_total" in text
    assert "r1v_time_to_first_token_seconds_count" in text
    assert "r1v_cache_bytes" not in text
    assert "r1v_decoder_steps" not in text


def test_a_triton_that_is_down_is_a_503_with_cause_and_next_step(prompts_folder, deployment, tmp_path):
    triton = start_triton(deployment, tmp_path)
    server = Server(prompts_folder, "--triton", f"grpc://127.0.0.1:{triton.grpc}")
    try:
        assert httpx.get(f"{server.url}/ready", timeout=60).status_code == 200
        triton.stop()
        ready = httpx.get(f"{server.url}/ready", timeout=60)
        assert ready.status_code == 503, "a token from before the stop still counts"
        body = {"model": "nano", "messages": messages(None, "Hi"), "max_tokens": 4}
        for stream in (False, True):
            response = httpx.post(f"{server.url}/v1/chat/completions", json={**body, "stream": stream}, timeout=60)
            assert response.status_code == 503, response.text
            error = response.json()["error"]
            assert error["code"] == "backend_unavailable"
            assert "Triton does not answer" in error["message"]
            assert "start the deployment's tritonserver" in error["message"]
        ready = httpx.get(f"{server.url}/ready", timeout=60)
        assert ready.status_code == 503
        assert "Triton does not answer" in ready.json()["cause"]
        assert httpx.get(f"{server.url}/health").status_code == 200
        assert 'r1v_errors_total{code="backend_unavailable"}' in httpx.get(f"{server.url}/metrics").text
    finally:
        triton.stop()
        output = server.stop()
    assert '"status": 503' in output


def test_a_model_that_is_not_loaded_is_a_503(client, triton):
    control = f"{triton.url}/v2/repository/models/r1v_llm"
    assert httpx.post(f"{control}/unload", timeout=60).status_code == 200
    try:
        time.sleep(2)
        with pytest.raises(openai.InternalServerError) as failed:
            ask(client, None, "Hi", max_tokens=1)
        assert failed.value.status_code == 503, failed.value
    finally:
        assert httpx.post(f"{control}/load", timeout=60).status_code == 200
    assert ask(client, None, "Hi", max_tokens=1).usage.completion_tokens == 1


@pytest.mark.parametrize("url", ["localhost:8001", "http://localhost:8000", "grpc://localhost", "grpc://:1"])
def test_an_address_of_another_kind_is_refused(prompts_folder, url):
    run = CliRunner().invoke(command, [str(prompts_folder), "--triton", url])
    assert isinstance(run.exception, UsageError)
    assert "grpc://HOST:PORT" in str(run.exception)


def test_options_of_the_engine_are_refused_since_they_have_no_effect(prompts_folder):
    run = CliRunner().invoke(command, [str(prompts_folder), "--triton", "grpc://x:1", "--max-rows", "4"])
    assert isinstance(run.exception, UsageError)
    assert "--max-rows" in str(run.exception)
