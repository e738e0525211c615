"""What makes a traced graph ours: small passes over the ONNX IR, one per file, each with what it ensures.

The order is the data flow of `clean`; a pass leaves the numbers of the graph as they are.
"""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes.common import (
    CommonSubexpressionEliminationPass,
    DeduplicateInitializersPass,
    IdentityEliminationPass,
    LiftConstantsToInitializersPass,
    RemoveUnusedNodesPass,
    RemoveUnusedOpsetsPass,
    ShapeInferencePass,
)
from onnxscript import optimizer
from onnxscript.rewriter import RewriteRuleSet
from onnxscript.rewriter.rules.common import collapse_slice2_rule, collapse_slice_rule

from r1v_export.exporters.passes.constant_shapes import ConstantShapes
from r1v_export.exporters.passes.module_names import ModuleNames
from r1v_export.exporters.passes.order_of_use import OrderOfUse
from r1v_export.exporters.passes.run_passes import run_passes
from r1v_export.exporters.passes.transposed_weights import TransposedWeights


def clean(model: ir.Model, prefix: str, value_names: dict[str, str]) -> None:
    """Run every pass on a freshly traced model, in place."""
    optimizer.fold_constants_ir(model)
    RewriteRuleSet([collapse_slice_rule, collapse_slice2_rule]).apply_to_model(model)
    run_passes(
        model,
        ConstantShapes(),
        TransposedWeights(),
        IdentityEliminationPass(),
        CommonSubexpressionEliminationPass(),
        RemoveUnusedNodesPass(),
        LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        DeduplicateInitializersPass(),
        RemoveUnusedOpsetsPass(),
        ShapeInferencePass(),
        ModuleNames(prefix, value_names),
        OrderOfUse(),
    )
