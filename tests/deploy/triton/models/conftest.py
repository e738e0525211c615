from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from tests.deploy.triton.models import stand_in


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A stand-in of `triton_python_backend_utils`."""
    module = stand_in.backend()
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", module)
    return module
