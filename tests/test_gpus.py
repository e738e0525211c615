"""`--device cuda` without a GPU is refused with its cause, by every command that computes with PyTorch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from r1v_export.cli.main import run
from r1v_export.errors import CapabilityError
from r1v_export.gpus import require_device

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


def test_a_cpu_is_always_there_and_a_gpu_is_not() -> None:
    require_device("cpu")
    with pytest.raises(CapabilityError, match="no CUDA GPU"):
        require_device("cuda")


@pytest.mark.parametrize(
    "command",
    [
        ["check", "--gate", "streamed"],
        ["check", "--gate", "whole"],
        ["run", "--target", "pytorch", "What is there?"],
        ["bench", "--target", "pytorch"],
    ],
    ids=" ".join,
)
def test_a_missing_gpu_is_refused_before_anything_is_hashed(
    command: list[str], nano_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([command[0], str(nano_bundle), *command[1:], "--device", "cuda"]) == 4
    said = capsys.readouterr().err
    assert "There is no CUDA GPU" in said
    assert "use --device cpu" in said
    assert "hash" not in said
