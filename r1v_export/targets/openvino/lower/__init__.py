"""Lowering: what OpenVINO's ONNX front end does not read, one pass per file. It reads all but the decoder's cache."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from r1v_export.exporters.passes.run_passes import run_passes
from r1v_export.targets.openvino.lower.cached_attention import CachedAttention
from r1v_export.targets.openvino.lower.keys_and_values import KeysAndValues


def lower(model: ir.Model, *, logits: bool = True) -> None:
    """Lower one of the contract's graphs, in place.

    Args:
        logits: keep the decoder's; else it gives keys and values of new tokens alone, of prompts.

    Raises:
        PassError: the graph is not as our exporters write it.
    """
    passes = [CachedAttention()] if logits else [CachedAttention(prompts=True), KeysAndValues()]
    run_passes(model, *passes, RemoveUnusedNodesPass())
