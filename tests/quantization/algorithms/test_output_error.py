from __future__ import annotations

import pytest
import torch

from r1v_export.quantization.algorithms import output_error
from r1v_export.quantization.algorithms.output_error import output_errors
from r1v_export.quantization.algorithms.rtn import round_to_nearest
from tests.quantization.conftest import Case


@pytest.mark.parametrize("block", [48, 128])
def test_the_output_errors_are_those_of_the_outputs(monkeypatch: pytest.MonkeyPatch, case: Case, block: int) -> None:
    monkeypatch.setattr(output_error, "_BLOCK", block)
    error = round_to_nearest(case.weight, "int4", 32).dequantize() - case.weight
    expected = (case.x.double() @ error.double().T).square().sum(0)
    found = output_errors(error.double(), case.x.double().T @ case.x.double())
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(output_errors(error, case.gram), expected.float(), rtol=1e-3, atol=0)
