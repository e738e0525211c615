"""Attention without a cache becomes ONNX Runtime's MultiHeadAttention."""

from __future__ import annotations

import onnx_ir as ir

from r1v_export.exporters.graph_values import input_of, size_of
from r1v_export.targets.onnxruntime.lower.pattern import MICROSOFT, after_heads, before_heads, replace_node


class MultiHeadAttention(ir.passes.InPlacePass):
    """Split into heads, Attention, merge -> one com.microsoft MultiHeadAttention on [batch, positions, hidden].

    It takes heads apart and together by itself and computes in blocks that stay in the cache, never a whole
    positions x positions matrix.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        layers = [node for node in model.graph if node.op_type == "Attention" and len(node.inputs) == 3]
        for attention in layers:
            _fuse(attention)
        if layers:
            model.opset_imports[MICROSOFT] = 1
        return ir.passes.PassResult(model, modified=bool(layers))


def _fuse(attention: ir.Node) -> None:
    heads = size_of(input_of(attention, 0), 1)
    fused = ir.node(
        "MultiHeadAttention",
        [before_heads(value) for value in attention.inputs],
        {"num_heads": heads},
        domain=MICROSOFT,
    )
    replace_node(attention, fused, [after_heads(attention.outputs[0])])
