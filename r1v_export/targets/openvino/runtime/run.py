"""Runs of OpenVINO: its errors as ours, with the graph and its inputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np

from r1v_export.targets.graph_errors import naming_graph
from r1v_export.targets.openvino.library import ov
from r1v_export.targets.openvino.signal_stack import kept_signal_stack


@contextmanager
def naming(graph: str, inputs: Mapping[str, np.ndarray]) -> Iterator[None]:
    """Errors of OpenVINO in the block name the graph and the inputs' shapes; signals are handled on the same stack
    behind it.

    Raises:
        GraphError: instead of whatever OpenVINO raises.
    """
    with kept_signal_stack(), naming_graph("OpenVINO", "openvino", ov.__version__, graph, inputs):
        yield
