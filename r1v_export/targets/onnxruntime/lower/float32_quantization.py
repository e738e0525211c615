"""Values are quantized and dequantized in float32, where the graph computes in float16."""

from __future__ import annotations

import onnx_ir as ir

from r1v_export.exporters.graph_values import dtype_of, graph_of, input_of, is_initializer
from r1v_export.targets.onnxruntime.lower.pattern import replace_node

_FLOAT = ir.DataType.FLOAT


class Float32Quantization(ir.passes.InPlacePass):
    """QuantizeLinear and DequantizeLinear of float16 values by a float32 scale -> the same between casts.

    On CUDA their kernels take scales of the values' own type only, and ONNX Runtime would compute them on the CPU, each
    time, without a word. Scales stay float32, which hold those that float16 rounds to nothing. Constants are left
    alone: they are dequantized on the CPU, once, when the graph is loaded.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        changed = [_widen(node) for node in list(model.graph) if not is_initializer(next(iter(node.inputs), None))]
        return ir.passes.PassResult(model, modified=any(changed))


def _widen(node: ir.Node) -> bool:
    if node.op_type not in ("QuantizeLinear", "DequantizeLinear") or dtype_of(input_of(node, 1)) != _FLOAT:
        return False
    if node.op_type == "QuantizeLinear":
        return _cast_input(node)
    return _cast_output(node)


def _cast_input(quantize: ir.Node) -> bool:
    value = input_of(quantize, 0)
    if value.dtype == _FLOAT:
        return False
    cast = ir.node("Cast", [value], {"to": int(_FLOAT)}, name=f"{quantize.name}/Cast")
    result = cast.outputs[0]
    result.name, result.shape, result.type = cast.name, value.shape, ir.TensorType(_FLOAT)
    graph_of(quantize).insert_before(quantize, cast)
    quantize.replace_input_with(0, result)
    return True


def _cast_output(dequantize: ir.Node) -> bool:
    value, dtype = dequantize.outputs[0], dtype_of(dequantize.outputs[0])
    if dtype == _FLOAT:
        return False
    attributes = [attribute for name, attribute in dequantize.attributes.items() if name != "output_dtype"]
    wide = ir.node("DequantizeLinear", dequantize.inputs, name=f"{dequantize.name}/float32")
    wide.attributes.update({attribute.name: attribute for attribute in attributes})
    result = wide.outputs[0]
    result.name, result.shape, result.type = wide.name, value.shape, ir.TensorType(_FLOAT)
    cast = ir.node("Cast", [result], {"to": int(dtype)})
    graph_of(dequantize).insert_before(dequantize, wide)
    replace_node(dequantize, cast, [value])
    return True
