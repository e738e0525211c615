"""OpenVINO's errors as ours, with the graph and its inputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np

from r1v_export.errors import GraphError
from r1v_export.targets.openvino.library import ov


@contextmanager
def naming(graph: str, inputs: Mapping[str, np.ndarray]) -> Iterator[None]:
    """Errors of OpenVINO in the block name the graph and the inputs' shapes.

    Raises:
        GraphError: instead of whatever OpenVINO raises.
    """
    try:
        yield
    except Exception as error:  # OpenVINO raises RuntimeError and its own classes.
        shapes = ", ".join(f"{name} {array.dtype}{list(array.shape)}" for name, array in inputs.items())
        raise GraphError(
            f"OpenVINO fails in the {graph} graph.",
            where=f"{graph}, with {shapes}",
            found=f"openvino {ov.__version__}: {shortened(error)}",
            fix="with less memory than it takes, ask for fewer tokens, tiles or answers at once; else run "
            "`r1v-export verify`, and build again with this openvino",
        ) from error


def shortened(error: Exception) -> str:
    """OpenVINO's message on one line, its beginning."""
    return " ".join(str(error).split())[:600]
