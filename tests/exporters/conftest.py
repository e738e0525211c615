"""A small model for the exporters: its PyTorch reference, and an in-memory checkpoint of its weights."""

from __future__ import annotations

import pytest

from r1v_export.reference.model import Model
from tests.tiny_models import MemoryCheckpoint, checkpoint_of, random_model, tiny_spec


@pytest.fixture(scope="module")
def model() -> Model:
    return random_model(tiny_spec())


@pytest.fixture(scope="module")
def checkpoint(model: Model) -> MemoryCheckpoint:
    return checkpoint_of(model)
