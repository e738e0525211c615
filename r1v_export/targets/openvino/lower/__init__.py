"""Lowering: what OpenVINO's ONNX front end does not read, one pass per file. It reads all but the decoder's cache."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from r1v_export.exporters.passes.run_passes import run_passes
from r1v_export.targets.openvino.lower.cached_attention import CachedAttention
from r1v_export.targets.openvino.lower.paged_attention import PagedAttention


def lower(model: ir.Model, *, paged: bool = False) -> None:
    """Lower one of the contract's graphs, in place.

    Args:
        paged: let the decoder's cache be a pool of blocks, in OpenVINO's own operator.

    Raises:
        PassError: the graph is not as our exporters write it.
    """
    run_passes(model, PagedAttention() if paged else CachedAttention(), RemoveUnusedNodesPass())
