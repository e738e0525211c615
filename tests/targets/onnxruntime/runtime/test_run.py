"""Errors while a graph runs: ours, with the graph and its inputs, and without lines of ONNX Runtime's own."""

from __future__ import annotations

import logging
import warnings

import numpy as np
import onnx
import pytest

from r1v_export.errors import GraphError
from r1v_export.targets.onnxruntime.runtime.run import naming, refusing_overflow, run_graph
from r1v_export.targets.onnxruntime.runtime.session import open_session


def session(folder, element_type=onnx.TensorProto.FLOAT):
    """`x` [rows, 4] times a matrix of four rows."""
    weight = onnx.helper.make_tensor("w", element_type, [4, 2], np.ones(8))
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [onnx.helper.make_tensor_value_info("x", element_type, ["rows", "columns"])],
        [onnx.helper.make_tensor_value_info("y", element_type, ["rows", 2])],
        [weight],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10)
    return open_session(model.SerializeToString(), folder, "cpu", 1)


def test_a_run_that_fails_names_graph_and_shapes_and_writes_nothing(tmp_path, capfd):
    opened = session(tmp_path)
    with pytest.raises(GraphError, match="fails in the vision graph") as error:
        run_graph("vision", opened, np.zeros((3, 5), np.float32))
    assert error.value.where == "vision, with x float32[3, 5]"
    assert "MatMul" in error.value.found
    assert "".join(capfd.readouterr()) == ""


def test_onnxruntime_s_own_lines_are_shown_where_logging_asks_for_them(tmp_path, capfd, caplog):
    caplog.set_level(logging.INFO, logger="r1v_export")
    with pytest.raises(GraphError):
        run_graph("vision", session(tmp_path), np.zeros((3, 5), np.float32))
    assert "onnxruntime" in capfd.readouterr().err


def test_a_session_that_is_refused_writes_nothing(tmp_path, capfd):
    from r1v_export.errors import BundleError

    with pytest.raises(BundleError):
        open_session(b"\x08\x0anot a graph", tmp_path, "cpu", 1)
    assert "".join(capfd.readouterr()) == ""


def test_an_error_in_bound_memory_is_named_too():
    with pytest.raises(GraphError, match="decoder graph") as error, naming("decoder", {"x": np.zeros(2)}):
        raise RuntimeError("bad allocation")
    assert "bad allocation" in error.value.found


def test_a_number_beyond_float16_is_refused_and_no_warning_of_numpy(tmp_path):
    opened = session(tmp_path, onnx.TensorProto.FLOAT16)
    assert run_graph("vision", opened, np.full((1, 4), 100, np.float32))[0].dtype == np.float16
    with warnings.catch_warnings(action="error"), pytest.raises(GraphError, match="float16") as error:
        run_graph("vision", opened, np.array([[1e5, 0, 0, 0]], np.float32))
    assert error.value.where == "vision: x"
    with (
        warnings.catch_warnings(action="error"),
        pytest.raises(GraphError),
        refusing_overflow("d", "x", np.dtype("f2")),
    ):
        np.copyto(np.zeros(1, np.float16), np.array([1e5], np.float32), casting="same_kind")
