"""An ONNX model that holds nothing but a plan, for ONNX Runtime's TensorRT and NV-TensorRT-RTX execution providers.

ONNX Runtime loads it like any model; its one node, `EPContext`, names the plan next to it.
"""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from r1v_export.contract import OPSET
from r1v_export.targets.tensorrt.build.plan import GRAPH, PLAN, PlanInfo
from r1v_export.targets.tensorrt.library import TENSORRT, TENSORRT_RTX

CONTEXT = "_ctx.onnx"
"""Ending of the model's file: what ONNX Runtime itself calls such models."""

PROVIDERS = {TENSORRT: "TensorrtExecutionProvider", TENSORRT_RTX: "NvTensorRTRTXExecutionProvider"}
"""Target -> the execution provider that runs its plans."""

_DOMAIN, _OPERATOR = "com.microsoft", "EPContext"
_IR_VERSION = 10


def save_context_model(info: PlanInfo, folder: Path, name: str) -> Path:
    """Write `<name>_ctx.onnx` next to `<name>.plan`. The plan is referred to by its bare name: the providers follow no
    path that leaves the model's folder."""
    bindings = {
        binding.name: ir.Value(
            name=binding.name, shape=ir.Shape(binding.shape), type=ir.TensorType(_data_type(binding.dtype))
        )
        for binding in info.bindings
    }
    inputs = [bindings[binding.name] for binding in info.inputs]
    node = ir.Node(
        _DOMAIN,
        _OPERATOR,
        inputs,
        [
            ir.AttrInt64("main_context", 1),
            ir.AttrInt64("embed_mode", 0),
            ir.AttrString("ep_cache_context", f"{name}{PLAN}"),
            ir.AttrString("hardware_architecture", ",".join(map(str, info.compute_capabilities))),
            ir.AttrString("ep_sdk_version", info.version),
            ir.AttrString("onnx_model_filename", f"{name}{GRAPH}"),
            ir.AttrString("partition_name", name),
            ir.AttrString("source", PROVIDERS[info.library]),
        ],
        outputs=[bindings[binding.name] for binding in info.outputs],
        name=name,
    )
    imports = {"": OPSET, _DOMAIN: 1}
    graph = ir.Graph(inputs, list(node.outputs), nodes=[node], opset_imports=imports, name=name)
    path = folder / f"{name}{CONTEXT}"
    ir.save(ir.Model(graph, ir_version=_IR_VERSION), path)
    return path


def _data_type(dtype: str) -> ir.DataType:
    return ir.DataType["FLOAT" if dtype == "float32" else dtype.upper()]
