"""engines/image against Python's preprocessing: the same tiles of the same files, the same refusals."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.engines import golden_image

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def image_test(tmp_path_factory) -> Path:
    """The program of engines/tests/image, built."""
    build = tmp_path_factory.mktemp("engines")
    options = ["-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release"]
    subprocess.run(["cmake", "-S", REPOSITORY, "-B", build, *options], check=True, capture_output=True)
    subprocess.run(["ninja", "-C", build, "r1v_image_test"], check=True, capture_output=True)
    return build / "engines/tests/image/r1v_image_test"


@pytest.mark.slow
def test_images_become_the_tiles_of_python_bit_for_bit(image_test, tmp_path):
    golden_image.write(tmp_path / "image")
    environment = {**os.environ, "R1V_GOLDEN_DIR": str(tmp_path)}
    run = subprocess.run([image_test], env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-2000:]
    assert "806 images compared" in run.stdout
