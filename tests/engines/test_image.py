"""engines/image, with sanitizers: tiles and refusals are those of our Python, whose tiles are Pillow's and numpy's."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.engines import golden_image, programs

OPTIONS = ("-DR1V_SANITIZE=address,undefined", *programs.QUICK)


@pytest.fixture(scope="module")
def image_test(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("engines")
    return programs.build(folder, "r1v_image_test", options=OPTIONS) / "engines/tests/image/r1v_image_test"


@pytest.mark.slow
def test_images_become_the_tiles_of_python_bit_for_bit(image_test, tmp_path):
    golden_image.write(tmp_path / "image", sound=500, damaged=300)
    printed = programs.run(image_test, golden=tmp_path)
    assert f"{500 + 300 + len(list(golden_image.file_cases()))} images compared" in printed
