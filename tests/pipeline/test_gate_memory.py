"""Which gate this machine can run."""

from __future__ import annotations

from pathlib import Path

import pytest

from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.checkpoint.synth import synthesize
from r1v_export.config import ParityConfig
from r1v_export.contract import GRAPHS
from r1v_export.errors import CapabilityError
from r1v_export.pipeline.gate_memory import GateMemory, gate_memory
from r1v_export.pipeline.held_weights import HeldWeights
from r1v_export.pipeline.streamed_gate_memory import StreamedMemory
from r1v_export.quantization.recipe import load, resolve
from tests.tiny_models import tiny_spec


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


def test_the_gate_is_chosen_by_the_sums_of_the_parts() -> None:
    spec = tiny_spec()
    schemes = resolve(load("fp8-rowwise"), spec)
    for held in (HeldWeights(packed=True, graphs=GRAPHS), HeldWeights(unpacks_whole_blocks=True)):
        memory = gate_memory(spec, schemes, ParityConfig(), held)
        parts = StreamedMemory(spec, schemes, ParityConfig(), held).parts
        assert memory.streamed == max(parts.values())
        assert memory.choose("streamed", True, max(parts.values())) == "streamed"
        with pytest.raises(CapabilityError):
            memory.choose("streamed", True, max(parts.values()) - 1)


def test_the_38b_model_streams_within_six_gigabytes(tmp_path: Path) -> None:
    spec = Checkpoint.open(synthesize(tmp_path / "38b", preset="r1v3-38b", weights="empty")).spec
    schemes = resolve(load("int4-rtn"), spec)
    memory = gate_memory(spec, schemes, ParityConfig(), HeldWeights())
    assert memory.streamed < 6e9
    # Reference and reader in float32, 8 bytes a parameter, and a byte for each quantized one.
    assert 8 * 38e9 < memory.whole < 10 * 39e9
    packed = gate_memory(spec, schemes, ParityConfig(), HeldWeights(packed=True))
    assert packed.whole < memory.whole - 3 * 31e9


def test_a_head_in_8_bits_counts_as_such() -> None:
    spec = tiny_spec()
    head = spec.language.vocab_size * spec.language.hidden_size
    whole = {
        rounded: gate_memory(spec, {}, ParityConfig(), HeldWeights(rounded_head=rounded)).whole
        for rounded in (False, True)
    }
    assert 2.9 * head < whole[False] - whole[True] < 3 * head
