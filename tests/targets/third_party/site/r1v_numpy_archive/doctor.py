"""What the target needs on a machine: NumPy, which is always there."""

from __future__ import annotations

import numpy as np

from r1v_export.targets.interface import Readiness


def readiness() -> Readiness:
    """The version of NumPy."""
    return Readiness(found={"numpy": np.__version__})
