"""Lowering: what ONNX Runtime's own operators do better than the standard ones, one pass per file.

Each pass leaves the graph's boundary and, up to rounding, its numbers as they are, and is here because it measures
faster (benchmarks/); what ONNX Runtime fuses by itself at load is not repeated. SkipLayerNormalization is not used:
on the CPU the tower and prefill measured 4 to 7 % slower with it than with the Add and the norm that it replaces.
"""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass, TopologicalSortPass

from r1v_export.config import Device
from r1v_export.exporters.passes.run_passes import run_passes
from r1v_export.targets.onnxruntime.lower.block_quantized_fp8 import BlockQuantizedFp8
from r1v_export.targets.onnxruntime.lower.float32_quantization import Float32Quantization
from r1v_export.targets.onnxruntime.lower.folded_layer_scale import FoldedLayerScale
from r1v_export.targets.onnxruntime.lower.grouped_query_attention import GroupQueryAttention
from r1v_export.targets.onnxruntime.lower.integer_products import IntegerProducts
from r1v_export.targets.onnxruntime.lower.multi_head_attention import MultiHeadAttention
from r1v_export.targets.onnxruntime.lower.packed_projections import PackedProjections
from r1v_export.targets.onnxruntime.lower.split_projections import SplitProjections
from r1v_export.targets.scale_types import ScaleTypes


def lower(model: ir.Model, device: Device, *first: ir.passes.InPlacePass) -> None:
    """Lower one of the contract's graphs for sessions on `device`, in place.

    Args:
        first: passes that come before those of every graph.

    Raises:
        PassError: the graph is not as our exporters write it.
    """
    half = model.graph.outputs[0].dtype == ir.DataType.FLOAT16
    passes: list[ir.passes.InPlacePass] = [*first, MultiHeadAttention(), SplitProjections()]
    if not half:
        passes += [FoldedLayerScale()]  # ONNX Runtime folds constants on the CPU, which has no float16 Mul
    if device == "cpu" or half:  # GroupQueryAttention's CUDA kernel takes no float32
        passes += [GroupQueryAttention(int8_cache=device == "cpu"), PackedProjections(four_bits=device == "cpu")]
    if device == "cuda":
        passes += [BlockQuantizedFp8(), ScaleTypes(), Float32Quantization()]
    passes += [RemoveUnusedNodesPass(), TopologicalSortPass()]
    run_passes(model, *passes)


def multiply_integers(model: ir.Model) -> bool:
    """Let a lowered graph multiply INT8 values as integers, in place, on a CPU, unless it has a head in 8 bits.

    Returns:
        Whether it does.
    """
    run_passes(model, IntegerProducts(), RemoveUnusedNodesPass())
    return any(node.op_type == "MatMulIntegerToFloat" for node in model.graph)
