from __future__ import annotations

import onnx_ir as ir

from r1v_export.exporters.passes.module_names import ModuleNames
from tests.exporters.passes.graphs import model_of, value


def in_module(node: ir.Node, *path: str) -> ir.Node:
    """Mark a node as torch does: the modules it is in, outermost first, and torch's own name for it last."""
    node.metadata_props["pkg.torch.onnx.name_scopes"] = str(["", *path, "torch_name"])
    return node


def named_graph() -> ir.Model:
    x, weight = value("x", [2, 2]), value("model.layers.0.fc.weight", [2, 2])
    matmul = in_module(ir.node("MatMul", [x, weight]), "layers.0", "layers.0.fc")
    first = in_module(ir.node("Add", [matmul.outputs[0], x]), "layers.0")
    second = in_module(ir.node("Add", [first.outputs[0], x]), "layers.0")
    out = in_module(ir.node("Relu", [second.outputs[0]]))
    out.outputs[0].name = "y"
    model = model_of([x], [out.outputs[0]], [matmul, first, second, out], [weight])
    ModuleNames("model.", {"model.layers.0": "block.0"})(model)
    return model


def test_nodes_are_named_by_module_and_operator_and_counted_within_it():
    names = [node.name for node in named_graph().graph]
    assert names == ["model.layers.0.fc/MatMul", "model.layers.0/Add", "model.layers.0/Add_2", "model/Relu"]


def test_the_last_value_of_a_module_takes_the_name_asked_for():
    matmul, first, second, _ = named_graph().graph
    assert [node.outputs[0].name for node in (matmul, first, second)] == [
        "model.layers.0.fc/MatMul",
        "model.layers.0/Add",
        "block.0",
    ]


def test_the_boundary_and_the_weights_keep_their_names_and_torch_leaves_no_trace():
    model = named_graph()
    assert [value.name for value in (*model.graph.inputs, *model.graph.outputs)] == ["x", "y"]
    assert list(model.graph.initializers) == ["model.layers.0.fc.weight"]
    assert not any(node.metadata_props for node in model.graph)
