"""OpenVINO's errors as ours, with the graph and its inputs."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager

import numpy as np

from r1v_export.targets.graph_errors import naming_graph
from r1v_export.targets.openvino.library import ov


def naming(graph: str, inputs: Mapping[str, np.ndarray]) -> AbstractContextManager[None]:
    """Errors of OpenVINO in the block name the graph and the inputs' shapes.

    Raises:
        GraphError: instead of whatever OpenVINO raises.
    """
    return naming_graph("OpenVINO", "openvino", ov.__version__, graph, inputs)
