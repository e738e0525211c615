"""engines/text and engines/sampling: ids, text and tokens are those of `tokenizers`, of our Python and of numpy."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.engines import golden_sampling, golden_text, programs


@pytest.fixture(scope="module")
def golden(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("golden")
    golden_text.write(folder / "text")
    golden_sampling.write(folder / "sampling")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("built", ["engines", "sanitized"])
@pytest.mark.parametrize("name", ["text", "sampling"])
def test_ids_text_and_tokens_are_those_of_python(request, golden, built, name):
    folder = request.getfixturevalue(built)
    printed = programs.run(folder / f"engines/tests/{name}/r1v_{name}_test", golden=golden)
    assert "PASSED" in printed
    assert "SKIPPED" not in printed
