"""How much memory activations are kept in: what was asked for, or what the machine has room for."""

from __future__ import annotations

import pytest

from r1v_export.config import BuildConfig, CalibrationConfig
from r1v_export.pipeline import activation_memory
from r1v_export.pipeline.activation_memory import activation_memory_bytes

AUTO = BuildConfig(precision="fp8")


def test_a_size_that_was_asked_for_is_what_it_is() -> None:
    asked = BuildConfig(precision="fp8", calibration=CalibrationConfig(activation_memory="1MB"))
    assert activation_memory_bytes(asked, 1 << 40) == 10**6


@pytest.mark.parametrize(("free", "kept"), [(1 << 30, 4 << 30), (12 << 30, 4 << 30), (24 << 30, 8 << 30)])
def test_auto_is_a_third_of_what_is_free_and_never_less_than_it_was(
    monkeypatch: pytest.MonkeyPatch, free: int, kept: int
) -> None:
    monkeypatch.setattr(activation_memory, "available_bytes", lambda: free)
    assert activation_memory_bytes(AUTO) == kept
    assert activation_memory_bytes(AUTO, worker_bytes=30 << 30) == 10 << 30
