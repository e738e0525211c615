"""engines/text and engines/sampling, with sanitizers: ids, text and tokens are those of `tokenizers` and our Python."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.engines import golden_sampling, golden_text, programs

OPTIONS = ("-DR1V_SANITIZE=address,undefined", *programs.QUICK)


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("engines")
    return programs.build(folder, "r1v_text_test", "r1v_sampling_test", options=OPTIONS) / "engines/tests"


@pytest.mark.slow
def test_text_and_ids_are_those_of_python(built, tmp_path):
    golden_text.write(tmp_path / "text")
    printed = programs.run(built / "text/r1v_text_test", golden=tmp_path)
    assert "SKIPPED" not in printed


@pytest.mark.slow
def test_chosen_tokens_are_those_of_python(built, tmp_path):
    golden_sampling.write(tmp_path / "sampling")
    printed = programs.run(built / "sampling/r1v_sampling_test", golden=tmp_path)
    assert "SKIPPED" not in printed
