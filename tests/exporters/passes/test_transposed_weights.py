from __future__ import annotations

import onnx_ir as ir
import pytest

from r1v_export.exporters.passes.transposed_weights import TransposedWeights
from tests.exporters.passes.graphs import model_of, value


def test_a_transposed_weight_is_stored_transposed():
    x, weight = value("x", [2, 4]), value("w", [3, 4])
    transpose = ir.node("Transpose", [weight], {"perm": [1, 0]})
    matmul = ir.node("MatMul", [x, transpose.outputs[0]])
    model = model_of([x], [matmul.outputs[0]], [transpose, matmul], [weight])
    TransposedWeights()(model)
    assert [node.op_type for node in model.graph] == ["MatMul"]
    assert list(model.graph.initializers) == ["w.T"]
    assert matmul.inputs[1].shape == ir.Shape([4, 3])


def test_gemm_with_a_transposed_weight_becomes_matmul():
    x, weight = value("x", [2, 4]), value("w", [3, 4])
    gemm = ir.node("Gemm", [x, weight], {"transB": 1})
    model = model_of([x], [gemm.outputs[0]], [gemm], [weight])
    TransposedWeights()(model)
    (matmul,) = model.graph
    assert (matmul.op_type, matmul.inputs[1].name) == ("MatMul", "w.T")
    assert list(model.graph.initializers) == ["w.T"]


def test_a_weight_that_is_also_used_as_it_is_stays():
    x, weight = value("x", [3, 4]), value("w", [3, 4])
    add = ir.node("Add", [x, weight])
    transpose = ir.node("Transpose", [weight], {"perm": [1, 0]})
    matmul = ir.node("MatMul", [add.outputs[0], transpose.outputs[0]])
    model = model_of([x], [matmul.outputs[0]], [add, transpose, matmul], [weight])
    TransposedWeights()(model)
    assert set(model.graph.initializers) == {"w", "w.T"}


def test_a_gemm_of_another_form_is_refused_not_guessed():
    x, weight, bias = value("x", [2, 4]), value("w", [3, 4]), value("b", [3])
    gemm = ir.node("Gemm", [x, weight, bias], {"transB": 1})
    model = model_of([x], [gemm.outputs[0]], [gemm], [weight, bias])
    with pytest.raises(ir.passes.PreconditionError, match="without bias"):
        TransposedWeights()(model)
