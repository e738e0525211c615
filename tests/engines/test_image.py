"""engines/image, with sanitizers: tiles and refusals are those of our Python, whose tiles are Pillow's and numpy's."""

from __future__ import annotations

import pytest

from tests.engines import golden_image, programs


@pytest.mark.slow
def test_images_become_the_tiles_of_python_bit_for_bit(sanitized, tmp_path):
    golden_image.write(tmp_path / "image", sound=500, damaged=300)
    printed = programs.run(sanitized / "engines/tests/image/r1v_image_test", golden=tmp_path)
    assert f"{500 + 300 + len(list(golden_image.file_cases()))} images compared" in printed
