"""A real server process over the shipped model, asked by the official client."""

from __future__ import annotations

import http.client
import json
import logging
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import openai
import pytest

from r1v_export.serve import server
from tests.serve.conftest import IMAGES, QUESTIONS, messages
from tests.waiting import wait_until

STREAMED = {"stream": True, "stream_options": {"include_usage": True}}


@pytest.fixture(scope="module")
def client(served: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{served}/v1", api_key="none", max_retries=0)


def ask(client: openai.OpenAI, image: Path | None, question: str) -> tuple[str, str]:
    completion = client.chat.completions.create(
        model="nano", messages=messages(image, question), temperature=0, max_tokens=64
    )
    message = completion.choices[0].message
    return message.reasoning_content or "", message.content or ""


def test_the_client_gets_the_runner_s_answer_whole_and_streamed(client, alone):
    image, question = IMAGES[0], QUESTIONS[0]
    assert ask(client, image, question) == alone(image, question)
    stream = client.chat.completions.create(
        model="nano", messages=messages(image, question), temperature=0, max_tokens=64, **STREAMED
    )
    reasoning = answer = ""
    usage = None
    for chunk in stream:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            reasoning += getattr(choice.delta, "reasoning_content", None) or ""
            answer += choice.delta.content or ""
    assert (reasoning, answer) == alone(image, question)
    assert usage.completion_tokens > 0


def test_a_second_turn_is_answered(client):
    first = messages(IMAGES[0], QUESTIONS[0])
    answer = client.chat.completions.create(model="nano", messages=first, temperature=0).choices[0].message
    turns = [*first, answer.model_dump(include={"role", "content", "reasoning_content"}), *messages(None, "And now?")]
    second = client.chat.completions.create(model="nano", messages=turns, temperature=0, max_tokens=8)
    assert second.usage.prompt_tokens > 0


def test_many_clients_with_and_without_images_who_come_and_go_get_the_answers_of_lone_requests(client, served, alone):
    chooser = random.Random(0)
    cases = [(chooser.choice([None, *IMAGES]), chooser.choice(QUESTIONS)) for _ in range(24)]
    expected = [alone(*case) for case in cases]

    def one(index: int) -> tuple[str, str] | None:
        if index % 4:
            return ask(client, *cases[index])
        # This one goes away in the middle of its answer.
        body = {"model": "nano", "messages": messages(*cases[index]), "temperature": 0, "stream": True}
        with httpx.stream("POST", f"{served}/v1/chat/completions", json=body, timeout=60) as response:
            next(response.iter_lines())
        return None

    with ThreadPoolExecutor(12) as pool:
        found = list(pool.map(one, range(len(cases))))
    assert [answer for answer in found if answer] == [expected[index] for index in range(len(cases)) if index % 4]
    assert running(served) == 0


def running(served: str) -> float:
    """Requests that the server still works on, a moment after the last one has left."""
    for _ in range(100):
        text = httpx.get(f"{served}/metrics").text
        values = [line.split()[1] for line in text.splitlines() if line.startswith("r1v_requests_")][:2]
        if not any(map(float, values)):
            return 0
        time.sleep(0.1)
    return sum(map(float, values))


def test_errors_are_the_client_s_own_classes(client):
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="gpt-5", messages=messages(None, "Hi"))
    with pytest.raises(openai.BadRequestError, match="tools"):
        client.chat.completions.create(model="nano", messages=messages(None, "Hi"), tools=[])
    assert [model.id for model in client.models.list()] == ["nano"]
    assert client.models.retrieve("nano").id == "nano"


def test_a_connection_that_rested_longer_than_clients_keep_theirs_takes_a_request(served):
    connection = http.client.HTTPConnection(served.removeprefix("http://"))
    connection.request("GET", "/health")
    connection.getresponse().read()
    first = connection.sock
    time.sleep(6)  # httpx, and so the official client, lets a connection rest for 5 s.
    connection.request("GET", "/health")
    assert connection.getresponse().status == 200
    assert connection.sock is first


def test_sigterm_finishes_what_is_being_answered(start_server):
    server = start_server("--max-rows", "2")
    body = {"model": "nano", "messages": messages(IMAGES[0], QUESTIONS[0]), "temperature": 0, "stream": True}
    with httpx.stream("POST", f"{server.url}/v1/chat/completions", json=body, timeout=60) as response:
        lines = response.iter_lines()
        next(lines)
        output: list[str] = []
        stopping = threading.Thread(target=lambda: output.append(server.stop()))
        stopping.start()
        assert [line for line in lines if line][-1] == "data: [DONE]"
    stopping.join(60)
    assert server.process.returncode == 0
    logged = [json.loads(line) for line in output[0].splitlines()]
    assert logged[-1]["finish_reason"] == "stop"


@pytest.mark.parametrize("stream", [False, True])
def test_what_is_unfinished_when_the_time_to_drain_is_over_ends_with_an_error(start_server, stream):
    server = start_server("--drain-seconds", "1")
    asked = {"model": "nano", "prompt": " a" * 20, "max_tokens": 3500, "temperature": 0, "stream": stream}
    with ThreadPoolExecutor(16) as pool:
        url = server.url + "/v1/completions"
        waiting = [pool.submit(httpx.post, url, json=asked, timeout=60) for _ in range(16)]
        wait_until(lambda: sum(server.metrics()[f"r1v_requests_{what}"] for what in ("queued", "running")) == 16)
        server.stop()  # It also asserts that no traceback is in the log.
    for response in (each.result() for each in waiting):
        body = response.text.split("data: ")[-2] if response.status_code == 200 else response.text
        assert json.loads(body)["error"]["code"] == "server_stopped"
        assert stream or response.status_code == 503


def test_a_port_that_is_taken_is_an_error_of_ours(served, nano_bundle):
    from click.testing import CliRunner

    from r1v_export.cli.serve import command
    from r1v_export.errors import CapabilityError

    port = served.rpartition(":")[2]
    result = CliRunner().invoke(command, [str(nano_bundle), "--port", port])
    assert isinstance(result.exception, CapabilityError)
    assert port in str(result.exception)
    assert "address already in use" in str(result.exception.found)
    assert "Errno" not in result.output


def test_requests_that_the_drain_time_cut_off_are_counted_in_our_words(caplog: pytest.LogCaptureFixture) -> None:
    with server._logged_causes() as causes:
        logging.getLogger("uvicorn.error").error("Cancel %s running task(s), timeout graceful shutdown exceeded", 2)
    assert caplog.messages == ["not finished within the drain time, and cancelled: 2 requests"]
    assert not causes
