"""Errors of the library that runs a graph as ours, with the graph and its inputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np

from r1v_export.errors import GraphError


@contextmanager
def naming_graph(
    library: str, package: str, version: str, graph: str, inputs: Mapping[str, np.ndarray]
) -> Iterator[None]:
    """Errors of a library in the block name the graph and the inputs' dtypes and shapes.

    Args:
        library: as sentences name it.
        package: as it is installed.
        version: of the package.

    Raises:
        GraphError: instead of whatever the library raises.
    """
    try:
        yield
    except Exception as error:  # These libraries raise classes of their own, which share no base.
        shapes = ", ".join(f"{name} {array.dtype}{list(array.shape)}" for name, array in inputs.items())
        raise GraphError(
            f"{library} fails in the {graph} graph.",
            where=f"{graph}, with {shapes}",
            found=f"{package} {version}: {shortened(error)}",
            fix="with less memory than it takes, ask for fewer tokens, tiles or answers at once; else run "
            f"`r1v-export verify`, and build again with this {package}",
        ) from error


def shortened(error: Exception) -> str:
    """A library's message on one line, its beginning."""
    return " ".join(str(error).split())[:600]
