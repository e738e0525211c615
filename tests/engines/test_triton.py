"""engines/triton: a real tritonserver answers through it, as through the Python models, whose tests it passes, too."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import openai
import pytest
from PIL import Image

from r1v_export.bundle import Bundle
from r1v_export.deploy.triton.repository import MODELS_FOLDER, TritonOptions, write_repository
from r1v_export.runner.open_runner import open_runner
from tests.deploy.triton.conftest import start_triton
from tests.deploy.triton.front import Front, ask, client, front, prompts_folder
from tests.deploy.triton.r1v_model import (
    IMAGES,
    QUESTION,
    R1VModel,
    data_url,
    generate,
    grpc,
    is_healthy,
    joined,
    lone_answers,
    runner,
    running,
)
from tests.deploy.triton.tritonserver import TritonServer
from tests.serve.conftest import alone, start_server
from tests.waiting import wait_until

__all__ = ["alone", "client", "front", "lone_answers", "prompts_folder", "runner", "start_server"]

pytestmark = [pytest.mark.triton, pytest.mark.slow]

MAX_ROWS, MAX_QUEUED = 4, 256
ENDLESS = {"temperature": 2, "max_tokens": 3000, "ignore_eos": True}


@pytest.fixture(scope="module")
def deployment(nano_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("triton-cpp") / "deployment"
    write_repository(Bundle.open(nano_bundle), out, TritonOptions(max_rows=MAX_ROWS, cache_mib=256, backend="r1v"))
    return out


@pytest.fixture(scope="module")
def triton(engines: Path, deployment: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    library = engines / "engines/triton/libtriton_r1v.so"
    server = start_triton(deployment, tmp_path_factory.mktemp("tritonserver"), library)
    yield server
    server.stop()


def index(triton: TritonServer) -> str:
    return httpx.post(f"{triton.url}/v2/repository/index").text


def test_it_is_unloaded_whole_and_loaded_again(triton):
    """First, for Triton 24.10 keeps a model whose gRPC stream has ended by an error or was cancelled, now and then."""
    control, threads = f"{triton.url}/v2/repository/models/r1v", []
    for _ in range(4):
        assert httpx.post(f"{control}/unload", timeout=60).status_code == 200
        wait_until(lambda: triton.status("/v2/models/r1v/ready") != 200 and "UNLOADING" not in index(triton))
        assert generate(triton, text_input="Hi").status_code != 200
        threads.append(len(list(Path(f"/proc/{triton.process.pid}/task").iterdir())))
        assert httpx.post(f"{control}/load", timeout=60).status_code == 200
        assert is_healthy(triton)
    assert threads[-1] == threads[1]


def test_images_in_8_bits_are_answered_and_said_in_the_log(engines, int8_inputs_bundle, tmp_path):
    options = TritonOptions(max_rows=1, cache_mib=64, backend="r1v", vision_target="onnxruntime-int8")
    write_repository(Bundle.open(int8_inputs_bundle), tmp_path / "deployment", options)
    server = start_triton(tmp_path / "deployment", tmp_path, engines / "engines/triton/libtriton_r1v.so")
    try:
        answered = generate(server, text_input=QUESTION, image=data_url(IMAGES[0])).json()
        lone = open_runner(int8_inputs_bundle, vision_target="onnxruntime-int8").ask(QUESTION, IMAGES[0])
        assert joined([answered["token_ids"]]) == lone.token_ids[: len(answered["token_ids"])]
        assert "images by onnxruntime in int8 are not compared with PyTorch" in server.log.read_text()
    finally:
        server.stop()


class TestR1V(R1VModel):
    """Through libr1v."""


class TestFront(Front):
    """Over libr1v."""


def test_there_is_one_model_and_no_process_of_python(triton):
    (index,) = httpx.post(f"{triton.url}/v2/repository/index").json()
    assert (index["name"], index["state"]) == ("r1v", "READY")
    assert subprocess.run(["pgrep", "-P", str(triton.process.pid)], stdout=subprocess.DEVNULL, check=False).returncode


def test_nothing_but_the_entry_points_is_offered(engines):
    library = engines / "engines/triton/libtriton_r1v.so"
    listed = subprocess.run(["nm", "-D", "--defined-only", library], capture_output=True, text=True, check=True).stdout
    names = {line.split()[-1] for line in listed.splitlines()}
    assert names == {
        f"TRITONBACKEND_{name}"
        for name in ("Initialize", "Finalize", "ModelInitialize", "ModelFinalize", "ModelInstanceExecute")
    }


def test_an_image_shown_again_is_not_encoded_again(triton, tmp_path):
    noise = Image.fromarray(np.random.default_rng(3).integers(0, 256, (40, 40, 3), dtype=np.uint8))
    noise.save(path := tmp_path / "noise.png")
    names = ("r1v_image_cache_misses", "r1v_image_cache_hits")
    before = running(triton)
    answers = [generate(triton, text_input=QUESTION, image=data_url(path)).json() for _ in range(2)]
    assert answers[0]["text_output"] == answers[1]["text_output"]
    after = running(triton)
    assert [after[name] - before[name] for name in names] == [1, 1]


def test_requests_are_decoded_together_and_those_of_a_client_that_goes_away_end_waiting_or_not(triton):
    requests = [{"id": str(number), "sampling_parameters": ENDLESS} for number in range(2 * MAX_ROWS)]
    before = running(triton)["r1v_generated_tokens"]
    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(grpc, triton, *requests, cancel_after=3000)
        wait_until(lambda: running(triton)["r1v_requests_running"] == MAX_ROWS)
        assert running(triton)["r1v_requests_queued"] > 0
        asking.result()
    wait_until(lambda: running(triton)["r1v_requests_running"] == running(triton)["r1v_requests_queued"] == 0)
    assert running(triton)["r1v_generated_tokens"] - before < len(requests) * ENDLESS["max_tokens"]
    assert is_healthy(triton)


def test_a_full_queue_refuses_more(triton, client):
    requests = [{"id": str(number), "sampling_parameters": ENDLESS} for number in range(MAX_ROWS + MAX_QUEUED + 8)]
    refused = running(triton)["r1v_requests_refused"]
    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(grpc, triton, *requests, cancel_after=3000)
        wait_until(lambda: running(triton)["r1v_requests_refused"] == refused + 8)
        with pytest.raises(openai.RateLimitError, match="Too many requests are waiting"):
            ask(client, None, "Hi")
        found = asking.result()
    assert ["Too many requests are waiting." in error for error in found["errors"]] == [True] * 8
    wait_until(lambda: running(triton)["r1v_requests_running"] == running(triton)["r1v_requests_queued"] == 0)


@pytest.mark.parametrize(
    "parameters",
    [{"guided_regex": "a*"}, {"response_format": {"type": "json_object"}}],
)
def test_a_form_of_the_answer_is_refused_with_what_makes_one(triton, parameters):
    response = generate(triton, text_input="Hi", sampling_parameters=json.dumps(parameters))
    assert response.status_code == 400
    assert "--backend python" in response.json()["error"]
    text = json.dumps({"max_tokens": 1, "response_format": {"type": "text"}})
    assert generate(triton, text_input="Hi", sampling_parameters=text).status_code == 200


def test_a_model_that_cannot_be_loaded_says_why(triton, deployment):
    folder = deployment / MODELS_FOLDER / "broken"
    config = (deployment / MODELS_FOLDER / "r1v/config.pbtxt").read_text().replace('name: "r1v"', 'name: "broken"')
    (folder / "1").mkdir(parents=True)
    for old, new, cause in (
        ('"../bundle"', '"../models"', "manifest.json"),
        ('"max_rows"  value { string_value: "4"', '"max_rows"  value { string_value: "four"', "max_rows"),
        ('key: "cache_mib"', 'key: "cache"', "cache_mib"),
        ('string_value: "cpu"', 'string_value: "cuda"', "CUDA"),
    ):
        assert old in config
        (folder / "config.pbtxt").write_text(config.replace(old, new))
        response = httpx.post(f"{triton.url}/v2/repository/models/broken/load", timeout=60)
        assert response.status_code == 400
        (index,) = [each for each in httpx.post(f"{triton.url}/v2/repository/index").json() if each["name"] == "broken"]
        assert (index["state"], cause in index["reason"]) == ("UNAVAILABLE", True), index
    assert is_healthy(triton)


def test_the_server_s_log_has_no_error_of_the_backend(triton):
    assert is_healthy(triton)
    assert [line for line in triton.log.read_text().splitlines() if line.startswith("E") and "status.cpp" in line] == []
