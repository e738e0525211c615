"""Which models an engine is compared with, and where the reports are."""

from __future__ import annotations

from pathlib import Path

from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.config import BuildConfig, ParityConfig
from r1v_export.parity.options import CheckOptions
from r1v_export.parity.report import read_report
from r1v_export.pipeline.build import build
from r1v_export.pipeline.parity_gate import gate_names


def test_weights_that_the_target_rounds_are_compared_with_the_original_ones(tiny_model: Path, tmp_path: Path) -> None:
    parity = ParityConfig(questions=1, max_new_tokens=2)
    config = BuildConfig(model=str(tiny_model), precision="fp16", targets={"gguf": {"model": "Q4_K_M"}}, parity=parity)
    bundle = build(config, tmp_path / "out").out
    report = read_report(bundle / "report")
    assert (report.gate, report.passed) == ("quantization", True)
    assert not (bundle / "report" / "quantization").exists()
    (embeds,) = report.boundary("embeds").checks
    assert 0.99 < embeds.value < 0.9999


def test_without_a_calibration_only_the_arithmetic_is_compared(tiny_model: Path) -> None:
    checkpoint = Checkpoint.open(tiny_model)
    assert gate_names(checkpoint, None, CheckOptions("fp16")) == ("arithmetic",)
    assert gate_names(checkpoint, None, CheckOptions("fp16", own_weights="8-bit weights")) == ("quantization",)
