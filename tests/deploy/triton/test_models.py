"""The deployment in a real tritonserver: what its models do besides what `r1v_model.py` has."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from os import kill

import httpx
import numpy as np
import pytest
from PIL import Image

from r1v_export.deploy.triton.tensors import MODELS
from r1v_export.processing.preprocess import pixel_values
from tests.deploy.triton.r1v_model import (
    IMAGES,
    QUESTION,
    R1VModel,
    data_url,
    generate,
    grpc,
    is_healthy,
    lone_answers,
    runner,
)

__all__ = ["lone_answers", "runner"]

pytestmark = pytest.mark.triton


class TestR1V(R1VModel):
    """Through Triton's Python backend."""


def test_every_model_is_ready_and_tells_its_tensors(triton):
    for model in MODELS:
        assert triton.status(f"/v2/models/{model}/ready") == 200
        assert httpx.get(f"{triton.url}/v2/models/{model}").json()["inputs"]


def test_an_image_shown_again_is_not_encoded_again(triton, lone_answers, tmp_path):
    def encoded() -> int:
        (stats,) = httpx.get(f"{triton.url}/v2/models/r1v_vision/stats").json()["model_stats"]
        return stats["inference_count"]

    first = IMAGES[0]
    generate(triton, text_input=QUESTION, image=data_url(first))
    before = encoded()
    body = generate(triton, text_input=QUESTION, image=data_url(first)).json()
    assert (body["reasoning_output"], body["text_output"]) == (lone_answers[first].reasoning, lone_answers[first].text)
    assert encoded() == before
    noise = Image.fromarray(np.random.default_rng(before).integers(0, 256, (40, 40, 3), dtype=np.uint8))
    noise.save(path := tmp_path / "noise.png")
    assert generate(triton, text_input=QUESTION, image=data_url(path)).status_code == 200
    assert encoded() > before


def test_tiles_over_http_are_encoded_as_by_the_local_engine(triton, runner):
    pixels, _ = pixel_values([Image.open(IMAGES[0])], runner.tiling)
    tensor = {"name": "pixel_values", "datatype": "FP32", "shape": list(pixels.shape), "data": pixels.ravel().tolist()}
    response = httpx.post(f"{triton.url}/v2/models/r1v_vision/infer", json={"inputs": [tensor]}, timeout=60)
    (output,) = response.json()["outputs"]
    local = runner.vision.projector(runner.vision.vision(pixels))
    assert output["shape"] == list(local.shape)
    np.testing.assert_array_equal(np.array(output["data"], np.float32), local.ravel())


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
