"""Errors of libraries that run graphs."""

from __future__ import annotations

import numpy as np
import pytest

from r1v_export.errors import GraphError
from r1v_export.targets.graph_errors import naming_graph


def test_a_librarys_error_names_library_version_graph_and_inputs() -> None:
    inputs = {"pixel_values": np.zeros((2, 3), np.float32)}
    with (
        pytest.raises(GraphError, match="Some Runtime fails in the vision graph") as caught,
        naming_graph("Some Runtime", "some-runtime", "1.2", "vision", inputs),
    ):
        raise RuntimeError("no\n  kernel" + 1000 * "!")
    assert caught.value.where == "vision, with pixel_values float32[2, 3]"
    assert str(caught.value.found).startswith("some-runtime 1.2: no kernel!")
    assert len(str(caught.value.found)) < 650
    assert caught.value.fix is not None
    assert "build again with this some-runtime" in caught.value.fix
