"""Our comparison and Polygraphy's say the same of the same arrays."""

from __future__ import annotations

import numpy as np
import pytest
from polygraphy import comparator

from r1v_export.parity.metrics import TensorStatistics


@pytest.mark.parametrize("scale", [0.0, 1e-6, 1e-2, 3.0])
def test_largest_and_mean_errors_are_polygraphys(scale: float) -> None:
    random = np.random.default_rng(0)
    reference = random.standard_normal((4, 65, 33), dtype=np.float32)
    candidate = reference + scale * random.standard_normal(reference.shape, dtype=np.float32)
    ours = TensorStatistics.of(reference, candidate)
    sides = [comparator.IterationResult({"x": array}) for array in (candidate, reference)]
    theirs = comparator.SimpleCompareFunc(check_error_stat="max")(*sides)["x"]
    assert ours.max_abs_error == pytest.approx(float(theirs.max_absdiff), rel=1e-6)
    assert ours.mean_abs_error == pytest.approx(float(theirs.mean_absdiff), rel=1e-5)
