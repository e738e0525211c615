"""What `serve --triton` has to do over a real tritonserver, whatever backend runs there: a base of test classes.

Their modules have the fixture `triton`, a server, and import the others from here.
"""

from __future__ import annotations

import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openai
import pytest

from tests.deploy.triton.r1v_model import running
from tests.serve.conftest import IMAGES, QUESTIONS, Server, alone, messages, start_server

__all__ = ["alone", "start_server"]

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


class Front:
    """The server's front, asked by the official client."""

    def test_the_answers_are_the_local_runner_s_whole_and_streamed(self, client, alone):
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

    def test_many_clients_get_the_answers_of_lone_requests(self, client, alone):
        asked = [(image, question) for image in IMAGES[:4] for question in QUESTIONS]
        with ThreadPoolExecutor(8) as pool:
            completions = list(pool.map(lambda pair: ask(client, *pair), asked))
        for pair, completion in zip(asked, completions, strict=True):
            message = completion.choices[0].message
            assert (message.reasoning_content or "", message.content or "") == alone(*pair)

    def test_log_probabilities_are_those_of_the_own_loop(self, client, start_server):
        server = start_server("--vision-target", "onnxruntime")  # as the deployment
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

    def test_a_text_is_continued_and_a_conversation_goes_on(self, client, start_server):
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

    def test_several_answers_a_form_and_a_stop_string_pass_through(self, client):
        completion = ask(client, IMAGES[0], QUESTIONS[0], n=3, temperature=1, seed=5)
        assert [choice.index for choice in completion.choices] == [0, 1, 2]
        again = ask(client, IMAGES[0], QUESTIONS[0], n=3, temperature=1, seed=5)
        assert [each.message.content for each in again.choices] == [each.message.content for each in completion.choices]
        stopped = ask(client, IMAGES[4], QUESTIONS[2], stop=["5"])
        assert "5" not in stopped.choices[0].message.content

    def test_what_is_wrong_is_refused_as_by_the_own_loop(self, client):
        url = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
        with pytest.raises(openai.BadRequestError, match="image"):
            client.chat.completions.create(model="nano", messages=[{"role": "user", "content": [url]}])
        with pytest.raises(openai.BadRequestError, match="tokens"):
            client.chat.completions.create(model="nano", messages=[{"role": "user", "content": "many words " * 20_000}])
        assert ask(client, None, "Hi", max_tokens=1).usage.completion_tokens == 1

    def test_a_client_that_goes_away_ends_its_answer_on_triton(self, client, triton):
        stream = ask(client, None, QUESTIONS[1], temperature=2, max_tokens=3000, stream=True, seed=1)
        for _ in zip(range(5), stream, strict=False):
            pass
        stream.close()
        end = time.monotonic() + 20
        while running(triton)["r1v_requests_running"] and time.monotonic() < end:
            time.sleep(0.1)
        assert running(triton)["r1v_requests_running"] == 0
