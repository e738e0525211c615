"""The GoogleTest programs of engines/: all of ctest, and those that need a bundle and ONNX Runtime."""

from __future__ import annotations

from tests.engines import programs
from tests.engines.conftest import ONNXRUNTIME


def test_ctest_passes(engines):
    printed = programs.run("ctest", "--test-dir", engines, "--output-on-failure", "-j", "2")
    assert "100% tests passed" in printed


def test_graphs_run_on_onnxruntimes_c_api(engines, nano_bundle, monkeypatch):
    monkeypatch.setenv("R1V_BUNDLE", str(nano_bundle))
    monkeypatch.setenv("R1V_ONNXRUNTIME", str(ONNXRUNTIME))
    printed = programs.run(engines / "engines/tests/backends/r1v_backends_test")
    assert "SKIPPED" not in printed
