"""The deployment in a real tritonserver: answers are those of the local runner, and what is wrong is said."""

from __future__ import annotations

import base64
import json
import re
import signal
import subprocess
import sys
import time
from os import kill
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from r1v_export.deploy.triton.tensors import MODELS
from r1v_export.generation import Sampling
from r1v_export.processing.preprocess import pixel_values
from r1v_export.runner.open_runner import open_runner
from r1v_export.runner.prompt_encoder import Request
from tests.deploy.triton.tritonserver import ENVIRONMENT, TritonServer

pytestmark = pytest.mark.triton

IMAGES = sorted(Path("examples/images").glob("*.png"))[:6]
QUESTION = "How many objects do you see?"
GREEDY = {"temperature": 0, "max_tokens": 64}


@pytest.fixture(scope="module")
def runner(nano_bundle):
    return open_runner(nano_bundle)


@pytest.fixture(scope="module")
def alone(runner):
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
    asked = [{"text_input": QUESTION, "images": [], "sampling_parameters": GREEDY, **request} for request in requests]
    run = subprocess.run(
        [ENVIRONMENT / "bin" / "python", Path(__file__).with_name("grpc_client.py"), str(triton.grpc)],
        input=json.dumps({"requests": asked, "cancel_after": cancel_after}),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


def is_healthy(triton: TritonServer) -> bool:
    return generate(triton, text_input="Hi", sampling_parameters='{"max_tokens": 1}').status_code == 200


def test_every_model_is_ready_and_tells_its_tensors(triton):
    for model in MODELS:
        assert triton.status(f"/v2/models/{model}/ready") == 200
        assert httpx.get(f"{triton.url}/v2/models/{model}").json()["inputs"]


def test_generate_gives_the_local_runner_s_answer(triton, alone):
    for path, answer in alone.items():
        body = generate(triton, text_input=QUESTION, image=data_url(path)).json()
        assert (body["reasoning_output"], body["text_output"]) == (answer.reasoning, answer.text)
        assert body["finish_reason"] == answer.finish_reason
        assert json.loads(body["usage"])["prompt_tokens"] == answer.prompt_tokens
        assert joined([body["token_ids"]]) == answer.token_ids


def joined(token_ids: list) -> tuple[int, ...]:
    """The tokens of all responses; in Triton's JSON, one that is alone is no list."""
    return tuple(id_ for ids in token_ids for id_ in (ids if isinstance(ids, list) else [ids]))


def test_generate_stream_brings_it_as_it_is_generated(triton, alone):
    answer = alone[IMAGES[0]]
    body = {"text_input": QUESTION, "image": data_url(IMAGES[0]), "sampling_parameters": json.dumps(GREEDY)}
    response = httpx.post(f"{triton.url}/v2/models/r1v/generate_stream", json=body, timeout=60)
    events = [json.loads(line.removeprefix("data: ")) for line in response.text.splitlines() if line]
    assert joined([event["token_ids"] for event in events]) == answer.token_ids
    assert "".join(event["text_output"] for event in events) == answer.text
    assert len(events) > 5
    assert ["usage" in event for event in events] == [False] * (len(events) - 1) + [True]


def test_an_image_shown_again_is_not_encoded_again(triton, alone, tmp_path):
    def encoded() -> int:
        (stats,) = httpx.get(f"{triton.url}/v2/models/r1v_vision/stats").json()["model_stats"]
        return stats["inference_count"]

    first = IMAGES[0]
    generate(triton, text_input=QUESTION, image=data_url(first))
    before = encoded()
    body = generate(triton, text_input=QUESTION, image=data_url(first)).json()
    assert (body["reasoning_output"], body["text_output"]) == (alone[first].reasoning, alone[first].text)
    assert encoded() == before
    noise = Image.fromarray(np.random.default_rng(before).integers(0, 256, (40, 40, 3), dtype=np.uint8))
    noise.save(path := tmp_path / "noise.png")
    assert generate(triton, text_input=QUESTION, image=data_url(path)).status_code == 200
    assert encoded() > before


def test_a_conversation_is_answered(triton, runner):
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": data_url(IMAGES[0])}}]},
        {"role": "assistant", "content": "A scene."},
        {"role": "user", "content": QUESTION},
    ]
    body = generate(triton, messages=json.dumps(messages)).json()
    assert json.loads(body["usage"])["prompt_tokens"] > 0
    assert body["finish_reason"] in ("stop", "length")


def test_interleaved_grpc_streams_are_the_lone_answers_token_by_token(triton, alone):
    requests = [{"id": path.name, "images": [str(path)]} for path in IMAGES]
    found = grpc(triton, *requests)
    for path, answer in alone.items():
        streamed = found["answers"][path.name]
        assert joined(streamed["tokens"]) == answer.token_ids
        assert (streamed["reasoning"], streamed["text"]) == (answer.reasoning, answer.text)
        assert json.loads(streamed["usage"])["completion_tokens"] == len(answer.token_ids)
    switches = sum(first != second for first, second in zip(found["order"], found["order"][1:], strict=False))
    assert switches > len(IMAGES)


def test_tiles_over_http_are_encoded_as_by_the_local_engine(triton, runner):
    pixels, _ = pixel_values([Image.open(IMAGES[0])], runner.tiling)
    tensor = {"name": "pixel_values", "datatype": "FP32", "shape": list(pixels.shape), "data": pixels.ravel().tolist()}
    response = httpx.post(f"{triton.url}/v2/models/r1v_vision/infer", json={"inputs": [tensor]}, timeout=60)
    (output,) = response.json()["outputs"]
    local = runner.vision.projector(runner.vision.vision(pixels))
    assert output["shape"] == list(local.shape)
    np.testing.assert_array_equal(np.array(output["data"], np.float32), local.ravel())


@pytest.mark.parametrize(
    "fields",
    [
        {"text_input": "What?", "image": "data:image/png;base64,AAAA"},
        {"text_input": "What?", "image": "no image"},
        {"text_input": "What?", "messages": "[]"},
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
def test_bad_requests_get_a_400_and_leave_the_server_healthy(triton, fields):
    response = generate(triton, **fields)
    assert response.status_code == 400, response.text
    assert response.json()["error"]
    assert is_healthy(triton)


@pytest.mark.parametrize(
    ("model", "tensor"),
    [
        ("r1v_vision", {"name": "pixel_values", "datatype": "FP32", "shape": [1, 3, 2, 2], "data": [0.0] * 12}),
        ("r1v_vision", {"name": "pixel_values", "datatype": "INT64", "shape": [1, 1], "data": [1]}),
        ("r1v_preprocess", {"name": "text_input", "datatype": "BYTES", "shape": [2], "data": ["a", "b"]}),
    ],
)
def test_wrong_shapes_and_types_get_a_400(triton, model, tensor):
    response = httpx.post(f"{triton.url}/v2/models/{model}/infer", json={"inputs": [tensor]}, timeout=60)
    assert response.status_code == 400, response.text
    assert is_healthy(triton)


def test_more_tiles_than_a_batch_holds_are_refused_and_r1v_splits_them(triton, runner):
    tile = runner.tiling.tile_size
    pixels = [0.0] * (9 * 3 * tile * tile)
    tensor = {"name": "pixel_values", "datatype": "FP32", "shape": [9, 3, tile, tile], "data": pixels}
    response = httpx.post(f"{triton.url}/v2/models/r1v_vision/infer", json={"inputs": [tensor]}, timeout=60)
    assert response.status_code == 400
    images = {"id": "many", "images": [str(IMAGES[0])] * 10}
    answer = grpc(triton, images)["answers"]["many"]
    assert answer["finish_reason"] in ("stop", "length")


def running(triton: TritonServer) -> dict[str, float]:
    text = httpx.get(triton.metrics_url).text
    return {name: float(value) for name, value in re.findall(r"^(r1v_\w+)(?:\{[^}]*\})? (\S+)$", text, re.MULTILINE)}


def test_a_client_that_goes_away_ends_its_answer(triton):
    before = running(triton)["r1v_generated_tokens"]
    endless = {"id": "endless", "sampling_parameters": {"temperature": 2, "max_tokens": 3000}}
    grpc(triton, endless, cancel_after=5)
    end = time.monotonic() + 10
    while running(triton)["r1v_requests_running"] and time.monotonic() < end:
        time.sleep(0.05)
    counted = running(triton)
    assert counted["r1v_requests_running"] == 0
    assert counted["r1v_generated_tokens"] - before < 1500


def test_unloaded_models_are_refused_and_loaded_ones_answer(triton):
    control = f"{triton.url}/v2/repository/models/r1v_llm"
    assert httpx.post(f"{control}/unload", timeout=60).status_code == 200
    end = time.monotonic() + 20
    while triton.status("/v2/models/r1v_llm/ready") == 200 and time.monotonic() < end:
        time.sleep(0.1)
    assert generate(triton, text_input="Hi").status_code != 200
    assert httpx.post(f"{control}/load", timeout=60).status_code == 200
    assert is_healthy(triton)


def test_the_probe_finds_a_dead_process_that_triton_calls_ready(triton, deployment):
    probe = [sys.executable, str(deployment / "probe.py"), triton.url]
    assert subprocess.run(probe, capture_output=True, timeout=60).returncode == 0
    (stub,) = triton.stubs("r1v_llm")
    kill(stub, signal.SIGKILL)
    assert subprocess.run(probe, capture_output=True, timeout=90).returncode != 0
    assert triton.status("/v2/models/r1v_llm/ready") == 200
    for step in ("unload", "load"):
        assert httpx.post(f"{triton.url}/v2/repository/models/r1v_llm/{step}", timeout=60).status_code == 200
        time.sleep(1)
    assert subprocess.run(probe, capture_output=True, timeout=60).returncode == 0


def test_the_commands_of_its_readme_run(triton, deployment):
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
