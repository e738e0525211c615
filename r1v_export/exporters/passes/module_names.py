"""Nodes and values are named after the module of the reference that they come from."""

from __future__ import annotations

import ast
from collections import Counter

import onnx_ir as ir

from r1v_export.exporters.graph_values import name_of

CONSTANT = "const "
"""Prefix of the name of an initializer that is a constant of the graph, not a weight; its content follows."""

_SCOPES = "pkg.torch.onnx.name_scopes"


class ModuleNames(ir.passes.InPlacePass):
    """Name each node `module.path/Operator` and its results likewise; drop torch's own metadata.

    The module path is the one in the checkpoint's tensor names, so an engine's message about a node says at once
    which weights and which lines of the reference it is about. `value_names` names the last value of a module.
    """

    def __init__(self, prefix: str, value_names: dict[str, str]) -> None:
        super().__init__()
        self.prefix, self.value_names = prefix, value_names

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        graph = model.graph
        boundary = {*graph.inputs, *graph.outputs}
        seen: Counter[str] = Counter()
        last_value: dict[str, ir.Value] = {}

        def unique(name: str) -> str:
            seen[name] += 1
            return name if seen[name] == 1 else f"{name}_{seen[name]}"

        for value in list(graph.initializers.values()):
            if value.const_value is not None:  # a lifted constant: named by its content, like 64 or [0, 0, 4, 64]
                _rename_initializer(graph, value, unique(_constant_name(value.const_value)))
        for node in graph:
            module = self._module(node)
            node.name = unique(f"{module}/{node.op_type}")
            for output in node.outputs:
                if output not in boundary:
                    output.name = node.name if len(node.outputs) == 1 else f"{node.name}:{output.index()}"
                output.metadata_props.clear()
            last_value[module] = node.outputs[0]
            node.metadata_props.clear()
            node.doc_string = None
        for module, name in self.value_names.items():
            last_value[module].name = name
        model.metadata_props.clear()
        graph.metadata_props.clear()
        return ir.passes.PassResult(model, True)

    def _module(self, node: ir.Node) -> str:
        scopes = ast.literal_eval(node.metadata_props.get(_SCOPES, "['']"))
        path = next((scope for scope in reversed(scopes[:-1]) if scope and not scope.startswith("_")), "")
        return (self.prefix + path).rstrip(".")


def _constant_name(tensor: ir.TensorProtocol) -> str:
    return CONSTANT + str(tensor.numpy().tolist())


def _rename_initializer(graph: ir.Graph, value: ir.Value, name: str) -> None:
    graph.initializers.pop(name_of(value))
    value.name = name
    graph.initializers[name] = value
