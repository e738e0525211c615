"""Numbers that are not finite are found where they arise."""

from __future__ import annotations

import numpy as np

from r1v_export.errors import GraphError


def require_finite(array: np.ndarray, stage: str) -> None:
    """Check that an engine's output [...] has only finite numbers.

    Raises:
        GraphError: NaN or infinity among the numbers.
    """
    if not np.isfinite(array).all():
        raise GraphError(
            f"The {stage} graph gives numbers that are not finite.",
            where=stage,
            expected="finite numbers",
            found=f"{int((~np.isfinite(array)).sum())} of {array.size} are NaN or infinite",
            fix="run `r1v-export check` to find the first bad boundary, or build with --precision fp32",
        )
