"""Which gate this machine can run."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.checkpoint.synth import synthesize
from r1v_export.config import BuildConfig, ParityConfig
from r1v_export.errors import CapabilityError
from r1v_export.pipeline.build import build
from r1v_export.pipeline.gate_memory import GateMemory, gate_memory
from r1v_export.quantization.recipe import load, resolve

PROJECT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("wanted", "can_stream", "available", "chosen"),
    [
        ("auto", True, 101, "whole"),
        ("auto", True, 99, "streamed"),
        ("auto", False, 101, "whole"),
        ("streamed", True, 101, "streamed"),
        ("whole", True, 101, "whole"),
    ],
)
def test_whole_where_it_fits_and_is_not_overruled(wanted, can_stream: bool, available: int, chosen: str) -> None:
    assert GateMemory(whole=100, streamed=10).choose(wanted, can_stream, available) == chosen


@pytest.mark.parametrize(
    ("wanted", "can_stream", "available", "fix"),
    [
        ("auto", True, 9, "--no-parity"),
        ("auto", False, 99, "--no-parity"),
        ("whole", True, 99, "--gate streamed"),
        ("streamed", True, 9, "--no-parity"),
        ("streamed", False, 1000, "--gate whole"),
        ("streamed", False, 99, "machine with 100 B"),
    ],
)
def test_what_does_not_fit_is_refused_with_what_does(wanted, can_stream: bool, available: int, fix: str) -> None:
    with pytest.raises(CapabilityError) as error:
        GateMemory(whole=100, streamed=10).choose(wanted, can_stream, available)
    assert fix in error.value.fix


def test_the_38b_model_streams_within_six_gigabytes(tmp_path: Path) -> None:
    spec = Checkpoint.open(synthesize(tmp_path / "38b", preset="r1v3-38b", weights="empty")).spec
    schemes = resolve(load("int4-rtn"), spec)
    memory = gate_memory(spec, schemes, ParityConfig())
    assert memory.streamed < 6e9
    # Reference and reader in float32, 8 bytes a parameter, and a byte for each quantized one.
    assert 8 * 38e9 < memory.whole < 10 * 39e9
    packed = gate_memory(spec, schemes, ParityConfig(), packed_in_memory=True)
    assert packed.whole < memory.whole - 3 * 31e9


def test_a_streamed_gate_holds_what_was_planned(tmp_path: Path) -> None:
    overrides = {
        "vision_config.image_size": 112,
        "llm_config.hidden_size": 1024,
        "llm_config.intermediate_size": 12288,
        "llm_config.num_attention_heads": 8,
        "llm_config.num_key_value_heads": 2,
    }
    model = synthesize(tmp_path / "model", preset="nano", vision_layers=1, language_layers=1, overrides=overrides)
    config = BuildConfig(
        model=str(model),
        precision="int4",
        recipe="int4-rtn",
        targets=["hf-unified"],
        parity=ParityConfig(enabled=False),
    )
    build(config, tmp_path / "out")
    # In a process of its own, so that nothing else is measured; that process itself, half of the whole, is subtracted.
    script = PROJECT / "benchmarks" / "gate_memory.py"
    command = [sys.executable, script, tmp_path / "out", model, "--gate", "streamed"]
    line = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    (share,) = re.findall(r"without the process itself ([+-]\d+) %", line)
    assert abs(int(share)) <= 15, line
