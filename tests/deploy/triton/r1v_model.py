"""What the model `r1v` has to do in a real tritonserver, whatever backend runs it: a base of test classes.

Their modules have the fixtures `triton`, a server, and `deployment`, what it runs.
"""

from __future__ import annotations

import base64
import json
import re
import subprocess
import time
from pathlib import Path

import httpx
import pytest
from PIL import Image

from r1v_export.generation import Sampling
from r1v_export.runner.open_runner import open_runner
from r1v_export.runner.prompt_encoder import Request
from tests.deploy.triton.tritonserver import ENVIRONMENT, TritonServer

IMAGES = sorted(Path("examples/images").glob("*.png"))[:6]
QUESTION = "How many objects do you see?"
GREEDY = {"temperature": 0, "max_tokens": 64}


@pytest.fixture(scope="module")
def runner(nano_bundle):
    return open_runner(nano_bundle, vision_target="onnxruntime")  # as the deployment


@pytest.fixture(scope="module")
def lone_answers(runner):
    """An image -> the answer of a lone request, greedy."""
    return {
        path: runner.answer(Request.ask(QUESTION, Image.open(path)), Sampling(max_new_tokens=64)) for path in IMAGES
    }


def generate(triton: TritonServer, **fields) -> httpx.Response:
    body = {"stream": False, "sampling_parameters": json.dumps(GREEDY), **fields}
    return httpx.post(f"{triton.url}/v2/models/r1v/generate", json=body, timeout=60)


def data_url(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


def grpc(triton: TritonServer, *requests: dict, cancel_after: int | None = None) -> dict:
    """The responses of interleaved streams, by the id of their request, and their order."""
    omitted = {"text_input": QUESTION, "images": [], "sampling_parameters": GREEDY, "outputs": []}
    asked = [{**omitted, **request} for request in requests]
    run = subprocess.run(
        [ENVIRONMENT / "bin" / "python", Path(__file__).with_name("grpc_client.py"), str(triton.grpc)],
        input=json.dumps({"requests": asked, "cancel_after": cancel_after}),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


def generate_stream(triton: TritonServer, sampling: dict[str, object]) -> list[dict]:
    """The events of an answer about the first image."""
    body = {"text_input": QUESTION, "image": data_url(IMAGES[0]), "sampling_parameters": json.dumps(sampling)}
    response = httpx.post(f"{triton.url}/v2/models/r1v/generate_stream", json=body, timeout=60)
    return [json.loads(line.removeprefix("data: ")) for line in response.text.splitlines() if line]


def is_healthy(triton: TritonServer) -> bool:
    return generate(triton, text_input="Hi", sampling_parameters='{"max_tokens": 1}').status_code == 200


def joined(token_ids: list) -> tuple[int, ...]:
    """The tokens of all responses; in Triton's JSON, one that is alone is no list."""
    return tuple(id_ for ids in token_ids for id_ in (ids if isinstance(ids, list) else [ids]))


def running(triton: TritonServer) -> dict[str, float]:
    text = httpx.get(triton.metrics_url).text
    return {name: float(value) for name, value in re.findall(r"^(r1v_\w+)(?:\{[^}]*\})? (\S+)$", text, re.MULTILINE)}


class R1VModel:
    """Answers are those of the local runner, and what is wrong is said."""

    def test_generate_gives_the_local_runner_s_answer(self, triton, lone_answers):
        for path, answer in lone_answers.items():
            body = generate(triton, text_input=QUESTION, image=data_url(path)).json()
            assert (body["reasoning_output"], body["text_output"]) == (answer.reasoning, answer.text)
            assert body["finish_reason"] == answer.finish_reason
            assert json.loads(body["usage"])["prompt_tokens"] == answer.prompt_tokens
            assert joined([body["token_ids"]]) == answer.token_ids

    def test_generate_stream_brings_it_as_it_is_generated(self, triton, lone_answers):
        answer = lone_answers[IMAGES[0]]
        events = generate_stream(triton, GREEDY)
        assert joined([event["token_ids"] for event in events]) == answer.token_ids
        assert "".join(event["text_output"] for event in events) == answer.text
        assert ["usage" in event for event in events] == [False] * (len(events) - 1) + [True]
        # A long one: on a busy machine an event brings many tokens.
        assert len(generate_stream(triton, {**GREEDY, "max_tokens": 600, "ignore_eos": True})) > 5

    def test_a_conversation_is_answered(self, triton, runner):
        messages = [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": data_url(IMAGES[0])}}]},
            {"role": "assistant", "content": "A scene."},
            {"role": "user", "content": QUESTION},
        ]
        body = generate(triton, messages=json.dumps(messages)).json()
        assert json.loads(body["usage"])["prompt_tokens"] > 0
        assert body["finish_reason"] in ("stop", "length")

    def test_interleaved_grpc_streams_are_the_lone_answers_token_by_token(self, triton, lone_answers):
        requests = [{"id": path.name, "images": [str(path)]} for path in IMAGES]
        found = grpc(triton, *requests)
        for path, answer in lone_answers.items():
            streamed = found["answers"][path.name]
            assert joined(streamed["tokens"]) == answer.token_ids
            assert (streamed["reasoning"], streamed["text"]) == (answer.reasoning, answer.text)
            assert json.loads(streamed["usage"])["completion_tokens"] == len(answer.token_ids)
        switches = sum(first != second for first, second in zip(found["order"], found["order"][1:], strict=False))
        assert switches > len(IMAGES)

    def test_a_text_is_continued_as_it_is(self, triton, runner):
        expected = runner.answer(Request.continuation("I see a green"), Sampling(max_new_tokens=8))
        sampling = json.dumps({"temperature": 0, "max_tokens": 8})
        body = generate(triton, prompt="I see a green", sampling_parameters=sampling).json()
        assert (joined([body["token_ids"]]), body["text_output"]) == (expected.token_ids, expected.text)
        assert body["reasoning_output"] == ""

    def test_only_the_outputs_that_are_asked_for_are_sent(self, triton, lone_answers):
        answer = lone_answers[IMAGES[1]]
        request = {"id": "text", "images": [str(IMAGES[1])], "outputs": ["text_output", "finish_reason"]}
        found = grpc(triton, request)["answers"]["text"]
        assert (found["text"], found["finish_reason"]) == (answer.text, answer.finish_reason)
        assert (found["tokens"], found["reasoning"], found["usage"]) == ([], "", "")

    @pytest.mark.parametrize(
        "fields",
        [
            {"text_input": "What?", "image": "data:image/png;base64,AAAA"},
            {"text_input": "What?", "image": "no image"},
            {"text_input": "What?", "messages": "[]"},
            {"text_input": "What?", "prompt": "It is"},
            {"prompt": "It is", "image": "data:,"},
            {"text_input": "What?", "image": "data:image/png;base64"},
            {"messages": "[]"},
            {"messages": '[{"role": "user", "content": "x", "color": 1}]'},
            {"messages": '[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x/"}}]}]'},
            {"text_input": "What?", "sampling_parameters": '{"max_tokens": 0}'},
            {"text_input": "What?", "sampling_parameters": '{"stop": [""]}'},
            {"text_input": "What?", "sampling_parameters": "7"},
            {},
            {"messages": "{"},
            {"messages": '[{"role": "user", "content": 5}]'},
            {"messages": '[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "/etc/passwd"}}]}]'},
            {"text_input": "What?", "sampling_parameters": '{"best_of": 3}'},
            {"text_input": "What?", "sampling_parameters": '{"temperature": -1}'},
            {"text_input": "What?", "unknown_input": "x"},
            {"text_input": "x" * 70_000},
            {"text_input": ""},
        ],
    )
    def test_bad_requests_get_a_400_and_leave_the_server_healthy(self, triton, fields):
        response = generate(triton, **fields)
        assert response.status_code == 400, response.text
        assert response.json()["error"]
        assert is_healthy(triton)

    def test_a_client_that_goes_away_ends_its_answer(self, triton):
        before = running(triton)["r1v_generated_tokens"]
        endless = {"id": "endless", "sampling_parameters": {"temperature": 2, "max_tokens": 3000}}
        grpc(triton, endless, cancel_after=5)
        end = time.monotonic() + 10
        while running(triton)["r1v_requests_running"] and time.monotonic() < end:
            time.sleep(0.05)
        counted = running(triton)
        assert counted["r1v_requests_running"] == 0
        assert counted["r1v_generated_tokens"] - before < 1500

    def test_the_commands_of_its_readme_run(self, triton, deployment):
        text = (deployment / "README.md").read_text("utf-8")
        for port, own in ((8000, triton.http), (8001, triton.grpc)):
            text = text.replace(f"localhost:{port}", f"localhost:{own}")
        (ask,) = [code for code in re.findall(r"```bash\n(.*?)```", text, re.DOTALL) if code.startswith("curl")]
        run = subprocess.run(["bash", "-ec", ask], capture_output=True, text=True, timeout=60)
        assert '"usage"' in run.stdout, run
        assert "error" not in run.stdout
        (python,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
        command = [ENVIRONMENT / "bin" / "python", "-c", python, IMAGES[0]]
        run = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert run.stdout.strip(), run.stderr
