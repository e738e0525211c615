"""The shipped model, and the training code of examples/train_nano as importable modules."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from r1v_export.checkpoint.checkpoint import Checkpoint

sys.path.append(str(Path(__file__).parents[2] / "examples" / "train_nano"))


@pytest.fixture(scope="session")
def nano() -> Checkpoint:
    """The small trained model that the package carries."""
    return Checkpoint.open("r1v-nano")
