"""The libFuzzer programs of engines/fuzz, for a few seconds each: no crash, no sanitizer's report, nothing that hangs.

For longer: build as engines/fuzz/CMakeLists.txt says, then `r1v_tokenizer_fuzzer -max_total_time=3600 NEW
engines/fuzz/corpus/tokenizer`. An input that was a defect goes into the corpus.
"""

from __future__ import annotations

import os

import pytest

from tests.engines import programs

FUZZ = programs.REPOSITORY / "engines/fuzz"
NAMES = sorted(path.name.removesuffix("_fuzzer.cpp") for path in FUZZ.glob("*_fuzzer.cpp"))
SECONDS = int(os.environ.get("R1V_FUZZ_SECONDS", "15"))


@pytest.mark.slow
@pytest.mark.skipif(not programs.HAS_CLANG, reason="no clang++: engines/install_debian.sh --fuzz installs it")
@pytest.mark.parametrize("name", NAMES)
def test_no_input_crashes_or_hangs(sanitized, tmp_path, name):
    corpus = FUZZ / "corpus" / name
    assert list(corpus.iterdir())
    limits = ("-max_len=8192", "-timeout=20", "-rss_limit_mb=2048", f"-max_total_time={SECONDS}", "-seed=1")
    (tmp_path / "new").mkdir()
    programs.run(
        sanitized / f"engines/fuzz/r1v_{name}_fuzzer",
        *limits,
        f"-artifact_prefix={tmp_path}/",
        tmp_path / "new",
        corpus,
    )
