"""Residual additions become part of the norm that follows."""

from __future__ import annotations

import onnx_ir as ir

from r1v_export.builders.onnxruntime.passes.pattern import MICROSOFT, maker, replace_node

_FUSED = {"RMSNormalization": "SkipSimplifiedLayerNormalization", "LayerNormalization": "SkipLayerNormalization"}


class SkipLayerNorm(ir.passes.InPlacePass):
    """Add and RMSNormalization (or LayerNormalization) -> com.microsoft Skip(Simplified)LayerNormalization.

    One pass over the hidden state instead of two. The sum is the fourth output, for the next residual addition. Where
    the addend is itself a projection with a bias, the operator adds that bias too.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        fused = [_fuse(node) for node in list(model.graph) if node.op_type in _FUSED]
        if any(fused):
            model.opset_imports[MICROSOFT] = 1
        return ir.passes.PassResult(model, modified=any(fused))


def _fuse(norm: ir.Node) -> bool:
    add = maker(norm.inputs[0], "Add")
    if add is None or any(value.is_initializer() for value in add.inputs):
        return False
    stream, branch = add.inputs
    branch, bias = _without_bias(branch)
    inputs = [stream, branch, *norm.inputs[1:], *bias]
    fused = ir.node(
        _FUSED[norm.op_type],
        inputs,
        {"epsilon": norm.attributes.get_float("epsilon", 1e-5)},
        domain=MICROSOFT,
        num_outputs=4,
    )
    replace_node(norm, fused, [norm.outputs[0], None, None, add.outputs[0]])
    return True


def _without_bias(branch: ir.Value) -> tuple[ir.Value, tuple[ir.Value, ...]]:
    """x and b of a branch x + b with a vector b; just the branch if it is not such a sum."""
    add = maker(branch, "Add")
    if add is None or len(branch.uses()) > 1:
        return branch, ()
    x, bias = add.inputs
    is_vector = bias.shape is not None and len(bias.shape) == 1
    return (x, (bias,)) if is_vector else (branch, ())
