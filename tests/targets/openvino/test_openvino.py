"""Whole builds of the target, through the parity gate to an answer."""

from __future__ import annotations

from pathlib import Path

import pytest

from r1v_export.config import BuildConfig, CalibrationConfig, ParityConfig
from r1v_export.pipeline.build import build
from r1v_export.runner.open_runner import open_runner
from r1v_export.targets.openvino import doctor
from tests.targets.openvino.conftest import NEEDS_OPENVINO

pytestmark = [NEEDS_OPENVINO, pytest.mark.slow(60)]
IMAGE = Path(__file__).parents[3] / "examples/images/06-count.png"
GATE = ParityConfig(questions=2)


def matmul() -> str:
    return "bfloat16" if doctor.has_bfloat16() else "float32"


def test_the_shipped_model_answers_as_in_the_other_engine(tmp_path: Path, nano_bundle: Path) -> None:
    """Its gate allows for bfloat16's rounding, which does not change this answer."""
    config = BuildConfig(targets={"openvino": {"matmul": matmul()}}, parity=GATE)
    bundle = build(config, tmp_path / "nano").out
    assert not list((bundle / "engines" / "openvino").glob("*.data"))
    question = "How many objects do you see?"
    ours, theirs = (open_runner(folder).ask(question, IMAGE) for folder in (bundle, nano_bundle))
    assert ours.text == theirs.text
    assert ours.token_ids == theirs.token_ids


@pytest.mark.parametrize(
    ("precision", "inputs"), [("fp8", "exact"), ("int8", "exact"), ("int4", "exact"), ("int4", "int8")]
)
def test_quantized_engines_pass_their_gates(tmp_path: Path, tiny_model: Path, precision: str, inputs: str) -> None:
    config = BuildConfig(
        model=str(tiny_model),
        precision=precision,
        calibration=CalibrationConfig(samples=2),
        targets={"openvino": {"matmul": matmul(), "int4_inputs": inputs}},
        parity=GATE,
    )
    built = build(config, tmp_path / "quantized")
    assert (built.out / "engines" / "openvino" / "decoder.onnx").is_file()
