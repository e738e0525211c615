"""Weights that a graph transposes are stored transposed."""

from __future__ import annotations

import onnx_ir as ir

from r1v_export.exporters.graph_values import input_of, is_initializer, name_of, shape_of

TRANSPOSED = ".T"
"""Suffix of an initializer that holds its checkpoint tensor transposed."""


class TransposedWeights(ir.passes.InPlacePass):
    """Fold `Transpose(weight)` and `Gemm(x, weight, transB=1)` into an initializer named `weight.T`, [in, out].

    What is left is MatMul(x [.., in], weight.T [in, out]): the one form that quantization passes and engines look for.
    Ensures that no initializer is transposed at run time.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        graph = model.graph
        modified = False
        for node in list(graph):
            if node.domain:
                continue
            if node.op_type == "Transpose" and is_initializer(weight := node.inputs[0]):
                transposed = _transposed(graph, weight)
                ir.convenience.replace_all_uses_with(node.outputs[0], transposed)
                graph.remove(node, safe=True)
            elif node.op_type == "Gemm" and is_initializer(weight := node.inputs[1]):
                _gemm_to_matmul(graph, node)
            else:
                continue
            if not weight.uses():
                graph.initializers.pop(name_of(weight))
            modified = True
        return ir.passes.PassResult(model, modified)

    def ensures(self, model: ir.Model) -> None:
        for node in model.graph:
            if node.op_type == "Transpose" and is_initializer(weight := node.inputs[0]):
                raise ir.passes.PostconditionError(f"{weight.name} is still transposed at run time")


def _transposed(graph: ir.Graph, weight: ir.Value) -> ir.Value:
    name = f"{weight.name}{TRANSPOSED}"
    if name not in graph.initializers:
        value = ir.Value(name=name, shape=ir.Shape(reversed(shape_of(weight))), type=weight.type)
        graph.initializers[name] = value
    return graph.initializers[name]


def _gemm_to_matmul(graph: ir.Graph, gemm: ir.Node) -> None:
    """A linear over a 2-D input comes as Gemm with transB=1 and no bias in every model of this family."""
    if len(gemm.inputs) > 2 or gemm.attributes.get_int("transB", 0) != 1:
        raise ir.passes.PreconditionError(f"{gemm.name}: expected Gemm(x, weight, transB=1) without bias")
    matmul = ir.node("MatMul", [gemm.inputs[0], _transposed(graph, input_of(gemm, 1))])
    matmul.metadata_props.update(gemm.metadata_props)
    ir.convenience.replace_nodes_and_values(graph, gemm, [gemm], [matmul], gemm.outputs, matmul.outputs)
