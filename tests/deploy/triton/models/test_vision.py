"""`r1v_vision`, with what encodes images chosen by the deployment."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from r1v_export.bundle import Bundle
from r1v_export.deploy.triton.models.vision import TritonPythonModel
from r1v_export.deploy.triton.repository import TritonOptions, write_repository
from r1v_export.processing.preprocess import pixel_values
from r1v_export.runner.open_runner import open_runner
from tests.deploy.triton.models import stand_in
from tests.engines.programs import REPOSITORY

pytestmark = pytest.mark.usefixtures("backend")


def embeddings(deployment, pixels):
    model = TritonPythonModel()
    stand_in.LOGGED.clear()
    model.initialize(stand_in.arguments(deployment, "r1v_vision"))
    (response,) = model.execute([stand_in.Request(pixel_values=pixels)])
    assert response.error is None
    (logged,) = stand_in.LOGGED
    return response.outputs["image_embeds"], logged


def test_images_are_encoded_by_what_the_deployment_names(int8_inputs_bundle, tmp_path):
    runner = open_runner(int8_inputs_bundle)
    image = Image.open(REPOSITORY / "examples/images/05-chart.png")
    pixels, _ = pixel_values([image], runner.tiling, runner.image_policy)
    found = {}
    for asked, says in (("onnxruntime", "asked for"), ("onnxruntime-int8", "not compared with PyTorch")):
        out = tmp_path / asked
        write_repository(Bundle.open(int8_inputs_bundle), out, TritonOptions(vision_target=asked))
        found[asked], logged = embeddings(out, pixels)
        assert says in logged
        engine = open_runner(int8_inputs_bundle, vision_target=asked).engine
        np.testing.assert_array_equal(found[asked], engine.projector(engine.vision(pixels)))
    assert not np.array_equal(found["onnxruntime"], found["onnxruntime-int8"])

    config = out / "models/r1v_vision/config.pbtxt"  # as earlier versions wrote it
    lines = [line for line in config.read_text().splitlines() if "vision_target" not in line]
    config.write_text("\n".join(lines) + "\n")
    without, logged = embeddings(out, pixels)
    np.testing.assert_array_equal(without, found["onnxruntime"])
    assert "no gate has compared it" in logged or "omitted (--no-parity)" in logged
