"""What attention over the cache is made of in the standard decoder, and what makes other nodes of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import onnx_ir as ir

from r1v_export.exporters.graph_values import input_of, producer


class AttentionLayer(NamedTuple):
    """What attention of one layer is computed from, each [batch, heads, positions, head_dim]."""

    query: ir.Value
    past_key: ir.Value
    new_key: ir.Value
    past_value: ir.Value
    new_value: ir.Value

    @staticmethod
    def of(attention: ir.Node) -> AttentionLayer:
        """The layer of one of `attention_nodes`.

        Raises:
            PreconditionError: it is not as our exporters write it.
        """
        if set(attention.attributes) != {"is_causal"}:
            raise ir.passes.PreconditionError(f"{attention.name}: attributes {sorted(attention.attributes)}")
        scatters = [producer(input_of(attention, index), "TensorScatter") for index in (1, 2)]
        parts = [input_of(scatter, index) for scatter in scatters for index in (0, 1)]
        return AttentionLayer(input_of(attention, 0), *parts)


def attention_nodes(graph: ir.Graph) -> list[ir.Node]:
    """What attends to the cache, in the order of the layers."""
    return [node for node in graph if node.op_type == "Attention" and len(node.inputs) == 7]


class Maker:
    """Makes nodes in front of one, their names below a prefix."""

    def __init__(self, graph: ir.Graph, before: ir.Node, prefix: str) -> None:
        self._graph, self._before, self._prefix, self._count = graph, before, prefix, 0

    def __call__(
        self, op_type: str, inputs: Sequence[ir.Value], attributes: dict[str, Any] | None = None, domain: str = ""
    ) -> ir.Value:
        return self.several(op_type, inputs, attributes, 1, domain)[0]

    def several(
        self,
        op_type: str,
        inputs: Sequence[ir.Value],
        attributes: dict[str, Any] | None,
        outputs: int,
        domain: str = "",
    ) -> Sequence[ir.Value]:
        """A node of several outputs; they are its result."""
        name = self._name(op_type)
        node = ir.node(op_type, inputs, attributes or {}, num_outputs=outputs, name=name, domain=domain)
        for index, output in enumerate(node.outputs):
            output.name = f"{name}/{index}"
        self._graph.insert_before(self._before, node)
        return node.outputs

    def int64(self, content: int | list[int]) -> ir.Value:
        """A constant, int64."""
        return self.constant(content, ir.DataType.INT64)

    def constant(self, content: float | list[int], dtype: ir.DataType) -> ir.Value:
        """A constant, an initializer of the graph."""
        name = self._name("constant")
        tensor = ir.Tensor(np.asarray(content).astype(dtype.numpy()), dtype=dtype, name=name)
        value = ir.Value(name=name, const_value=tensor, shape=tensor.shape, type=ir.TensorType(dtype))
        self._graph.register_initializer(value)
        return value

    def _name(self, what: str) -> str:
        self._count += 1
        return f"{self._prefix}/{what}_{self._count}"


def input_named(graph: ir.Graph, name: str) -> ir.Value:
    """An input of a graph."""
    return next(value for value in graph.inputs if value.name == name)


def remove_unused(graph: ir.Graph, op_type: str) -> None:
    """Remove the nodes of an operator that nothing uses any more."""
    unused = [node for node in graph if node.op_type == op_type and not any(o.uses() for o in node.outputs)]
    graph.remove(unused, safe=True)
