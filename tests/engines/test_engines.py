"""The GoogleTest programs of engines/: all of ctest, and those that need a bundle and ONNX Runtime, with sanitizers."""

from __future__ import annotations

import pytest

from tests.engines import programs
from tests.engines.conftest import ONNXRUNTIME


@pytest.fixture
def with_bundle(nano_bundle, monkeypatch):
    monkeypatch.setenv("R1V_BUNDLE", str(nano_bundle))
    monkeypatch.setenv("R1V_ONNXRUNTIME", str(ONNXRUNTIME))
    for sanitizer in ("lsan", "tsan"):
        suppressions = programs.REPOSITORY / f"engines/tests/{sanitizer}_suppressions.txt"
        monkeypatch.setenv(f"{sanitizer.upper()}_OPTIONS", f"suppressions={suppressions}")


def test_ctest_passes(engines):
    printed = programs.run("ctest", "--test-dir", engines, "--output-on-failure", "-j", "2")
    assert "100% tests passed" in printed


@pytest.mark.slow(60)
@pytest.mark.parametrize("folder", ["base", "bundle", "runner", "tensorrt_llm"])
def test_programs_are_clean_under_sanitizers(sanitized, folder):
    printed = programs.run(sanitized / f"engines/tests/{folder}/r1v_{folder}_test")
    assert "SKIPPED" not in printed


@pytest.mark.slow(60)
@pytest.mark.parametrize("folder", ["api", "backends", "memory", "tensorrt"])
def test_programs_that_open_onnx_runtime_are_clean_under_sanitizers(sanitized, with_bundle, folder):
    printed = programs.run(sanitized / f"engines/tests/{folder}/r1v_{folder}_test")
    assert "SKIPPED" not in printed
    assert folder != "memory" or "FindsMemoryThatIsLost" in printed


@pytest.mark.slow(60)
@pytest.mark.parametrize("folder", ["api", "runner", "tensorrt_llm"])
def test_threads_that_share_an_engine_do_not_race(race_checked, with_bundle, folder):
    printed = programs.run(race_checked / f"engines/tests/{folder}/r1v_{folder}_test")
    assert "SKIPPED" not in printed
