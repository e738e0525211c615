"""Running a graph: inputs in the graph's types, and ONNX Runtime's errors as ours, with the graph and its inputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np

from r1v_export.errors import GraphError
from r1v_export.targets.graph_errors import naming_graph
from r1v_export.targets.onnxruntime.library import ort

ELEMENT_TYPES: dict[str, np.dtype[Any]] = {
    "tensor(float)": np.dtype(np.float32),
    "tensor(float16)": np.dtype(np.float16),
}
"""What graphs may compute in here, by ONNX Runtime's name."""

CACHE_TYPES: dict[str, np.dtype[Any]] = {**ELEMENT_TYPES, "tensor(int8)": np.dtype(np.int8)}
"""What a decoder's cache may be in."""


def run_graph(graph: str, session: ort.InferenceSession, *arrays: np.ndarray) -> list[np.ndarray]:
    """Every output of a graph, for its inputs in order.

    Raises:
        GraphError: ONNX Runtime fails, or an input leaves the range of the graph's type.
    """
    feeds: dict[str, np.ndarray] = {}
    for value, array in zip(session.get_inputs(), arrays, strict=True):
        dtype = ELEMENT_TYPES.get(value.type, array.dtype)
        with refusing_overflow(graph, value.name, dtype):
            feeds[value.name] = array.astype(dtype, copy=False)
    with naming(graph, feeds):
        outputs: list[np.ndarray] = session.run(None, feeds)
    return outputs


def naming(graph: str, inputs: Mapping[str, np.ndarray]) -> AbstractContextManager[None]:
    """Errors of ONNX Runtime in the block name the graph and the inputs' shapes.

    Raises:
        GraphError: instead of whatever ONNX Runtime raises.
    """
    return naming_graph("ONNX Runtime", "onnxruntime", ort.__version__, graph, inputs)


@contextmanager
def refusing_overflow(graph: str, name: str, dtype: np.dtype[Any]) -> Iterator[None]:
    """A cast to `dtype` in the block gives no infinity.

    Raises:
        GraphError: a number is beyond the type's range.
    """
    try:
        with np.errstate(over="raise"):
            yield
    except FloatingPointError as error:
        raise GraphError(
            f"An input of the {graph} graph is beyond the range of {dtype}.",
            where=f"{graph}: {name}",
            expected=f"numbers of at most {np.finfo(dtype).max:g}",
            fix="build with --precision fp32",
        ) from error
