"""`serve --triton`: the server's front over a real tritonserver, asked by the official client."""

from __future__ import annotations

import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import openai
import pytest
from click.testing import CliRunner

from r1v_export.cli.serve import command
from r1v_export.errors import UsageError
from tests.deploy.triton.conftest import start_triton
from tests.deploy.triton.test_models import running
from tests.serve.conftest import IMAGES, QUESTIONS, Server, alone, messages, start_server

__all__ = ["alone", "start_server"]

pytestmark = pytest.mark.triton

NEW_TOKENS = 64


@pytest.fixture(scope="module")
def prompts_folder(nano_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the front needs of a bundle: its pipeline and tokenizer."""
    folder = tmp_path_factory.mktemp("front") / "nano"
    folder.mkdir()
    for path in nano_bundle.glob("*.json"):
        if path.name == "pipeline.json" or "token" in path.name or path.name == "vocab.json":
            shutil.copy(path, folder)
    shutil.copy(nano_bundle / "merges.txt", folder)
    return folder


@pytest.fixture(scope="module")
def front(triton, prompts_folder: Path):
    server = Server(prompts_folder, "--triton", f"grpc://127.0.0.1:{triton.grpc}")
    yield server
    server.stop()


@pytest.fixture(scope="module")
def client(front) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{front.url}/v1", api_key="none", max_retries=0)


def ask(client: openai.OpenAI, image: Path | None, question: str, **fields):
    fields = {"temperature": 0, "max_tokens": NEW_TOKENS, **fields}
    return client.chat.completions.create(model="nano", messages=messages(image, question), **fields)


def test_the_answers_are_the_local_runner_s_whole_and_streamed(client, alone):
    for image, question in ((IMAGES[0], QUESTIONS[0]), (IMAGES[4], QUESTIONS[2]), (None, QUESTIONS[1])):
        completion = ask(client, image, question)
        message = completion.choices[0].message
        assert (message.reasoning_content or "", message.content) == alone(image, question)
        details = completion.usage.completion_tokens_details
        assert 0 < details.reasoning_tokens <= completion.usage.completion_tokens
        reasoning = answer = ""
        for chunk in ask(client, image, question, stream=True, stream_options={"include_usage": True}):
            usage = chunk.usage
            for choice in chunk.choices:
                reasoning += getattr(choice.delta, "reasoning_content", None) or ""
                answer += choice.delta.content or ""
        assert (reasoning, answer) == alone(image, question)
        assert usage == completion.usage.model_copy(update={"prompt_tokens_details": usage.prompt_tokens_details})


def test_many_clients_get_the_answers_of_lone_requests(client, alone):
    asked = [(image, question) for image in IMAGES[:4] for question in QUESTIONS]
    with ThreadPoolExecutor(8) as pool:
        completions = list(pool.map(lambda pair: ask(client, *pair), asked))
    for pair, completion in zip(asked, completions, strict=True):
        message = completion.choices[0].message
        assert (message.reasoning_content or "", message.content or "") == alone(*pair)


def test_log_probabilities_are_those_of_the_own_loop(client, start_server):
    server = start_server()
    try:
        own = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
        for stream in (False, True):
            found, expected = (_logprobs(each, stream) for each in (client, own))
            assert len(found) == len(expected) > 5
            for left, right in zip(found, expected, strict=True):
                assert (left.token, [each.token for each in left.top_logprobs]) == (
                    right.token,
                    [each.token for each in right.top_logprobs],
                )
                assert left.logprob == pytest.approx(right.logprob, abs=1e-4)
    finally:
        server.stop()


def _logprobs(client: openai.OpenAI, stream: bool) -> list:
    completion = ask(client, IMAGES[4], QUESTIONS[2], logprobs=True, top_logprobs=2, stream=stream)
    choices = [choice for chunk in completion for choice in chunk.choices] if stream else completion.choices
    tokens = []
    for choice in choices:
        if choice.logprobs is not None:
            reasoning = [
                openai.types.chat.chat_completion_token_logprob.ChatCompletionTokenLogprob.model_validate(each)
                for each in choice.logprobs.model_extra["reasoning"]
            ]
            tokens += [*reasoning, *choice.logprobs.content]
    return tokens


def test_a_text_is_continued_and_a_conversation_goes_on(client, start_server):
    continued = client.completions.create(model="nano", prompt="I see a green", temperature=0, max_tokens=8)
    server = start_server()
    try:
        own = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
        expected = own.completions.create(model="nano", prompt="I see a green", temperature=0, max_tokens=8)
    finally:
        server.stop()
    assert continued.choices[0].text == expected.choices[0].text
    turns = [
        {"role": "system", "content": "Be brief."},
        *messages(IMAGES[0], QUESTIONS[0]),
        {"role": "assistant", "content": "3"},
        *messages(IMAGES[1], "And here?"),
    ]
    answer = client.chat.completions.create(model="nano", messages=turns, temperature=0, max_tokens=8)
    assert answer.usage.prompt_tokens > 0


def test_several_answers_a_form_and_a_stop_string_pass_through(client):
    completion = ask(client, IMAGES[0], QUESTIONS[0], n=3, temperature=1, seed=5)
    assert [choice.index for choice in completion.choices] == [0, 1, 2]
    again = ask(client, IMAGES[0], QUESTIONS[0], n=3, temperature=1, seed=5)
    assert [each.message.content for each in again.choices] == [each.message.content for each in completion.choices]
    stopped = ask(client, IMAGES[4], QUESTIONS[2], stop=["5"])
    assert "5" not in stopped.choices[0].message.content


def test_what_is_wrong_is_refused_as_by_the_own_loop(client):
    url = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    with pytest.raises(openai.BadRequestError, match="image"):
        client.chat.completions.create(model="nano", messages=[{"role": "user", "content": [url]}])
    with pytest.raises(openai.BadRequestError, match="tokens"):
        client.chat.completions.create(model="nano", messages=[{"role": "user", "content": "many words " * 20_000}])
    assert ask(client, None, "Hi", max_tokens=1).usage.completion_tokens == 1


def test_a_client_that_goes_away_ends_its_answer_on_triton(client, triton):
    stream = ask(client, None, QUESTIONS[1], temperature=2, max_tokens=3000, stream=True, seed=1)
    for _ in zip(range(5), stream, strict=False):
        pass
    stream.close()
    end = time.monotonic() + 20
    while running(triton)["r1v_requests_running"] and time.monotonic() < end:
        time.sleep(0.1)
    assert running(triton)["r1v_requests_running"] == 0


def test_an_answer_that_takes_too_long_is_a_timeout(triton, prompts_folder):
    server = Server(prompts_folder, "--triton", f"grpc://127.0.0.1:{triton.grpc}", "--max-seconds", "0.02")
    try:
        body = {"model": "nano", "messages": messages(None, "Hi"), "temperature": 2, "max_tokens": 3000}
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
