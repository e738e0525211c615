from __future__ import annotations

import io

import numpy as np
import pytest

from r1v_export.targets.onnxruntime.write import rounded_weights
from r1v_export.targets.onnxruntime.write.rounded_weights import write_rounded

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("zero", [np.int8(0), np.uint8(128)])
@pytest.mark.parametrize("group", [32, 64, 256])
@pytest.mark.parametrize("at_once", [1, 64 * 7, 1 << 21])
def test_a_matrix_is_rounded_to_nearest_in_groups(
    zero: np.int8 | np.uint8, group: int, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rounded_weights, "_AT_ONCE", at_once)
    weight_IO = RNG.standard_normal((256, 50)).astype(np.float32)
    weight_IO[:, 3] = 0
    out = io.BytesIO()
    scale_GO = write_rounded(weight_IO, group, zero, out)
    rounded_IO = np.frombuffer(out.getvalue(), zero.dtype).reshape(256, 50).astype(np.int64) - int(zero)
    scale_IO = np.repeat(scale_GO, group, axis=0)
    assert (np.abs(rounded_IO * scale_IO - weight_IO) <= 0.5001 * scale_IO).all()
    largest_GO = np.abs(rounded_IO).reshape(-1, group, 50).max(axis=1)
    assert (largest_GO == np.where(np.arange(50) == 3, 0, 127)).all()
