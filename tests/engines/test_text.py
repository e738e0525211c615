"""engines/text and engines/sampling, with sanitizers: ids, text and tokens are those of `tokenizers` and our Python."""

from __future__ import annotations

import pytest

from tests.engines import golden_sampling, golden_text, programs


@pytest.mark.slow
def test_text_and_ids_are_those_of_python(sanitized, tmp_path):
    golden_text.write(tmp_path / "text")
    printed = programs.run(sanitized / "engines/tests/text/r1v_text_test", golden=tmp_path)
    assert "SKIPPED" not in printed


@pytest.mark.slow
def test_chosen_tokens_are_those_of_python(sanitized, tmp_path):
    golden_sampling.write(tmp_path / "sampling")
    printed = programs.run(sanitized / "engines/tests/sampling/r1v_sampling_test", golden=tmp_path)
    assert "SKIPPED" not in printed
