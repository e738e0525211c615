"""Products of INT8 values are products of integers."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from r1v_export.exporters.graph_values import graph_of, input_of, is_initializer, maker, name_of, shape_of
from r1v_export.targets.onnxruntime.lower.pattern import MICROSOFT, constant, is_weight, replace_node
from r1v_export.targets.onnxruntime.rounding import MIDDLE

_INT8, _UINT8 = ir.DataType.INT8, ir.DataType.UINT8
_ZERO_POINT = "uint8_zero_point"


class IntegerProducts(ir.passes.InPlacePass):
    """MatMul of an input that is rounded to INT8 and of an INT8 weight -> MatMulIntegerToFloat of the input plus 128.

    ONNX Runtime makes one only where the input has a zero point and no other product reads it. Otherwise it dequantizes
    the weight in every run, so that a step of a decoder takes twenty times as long. Its fast kernels take UINT8 inputs.
    Where a CPU needs UINT8 weights, too, it makes them at load (`session_options.EXACT_INT8`), and fails on a graph
    with INT8 weights of other operators, such as a head in 8 bits: such a graph is left as it is.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        products = [product for node in model.graph if (product := _product(node)) is not None]
        multiplied = {product.weight for product in products}
        if not multiplied or any(_has_int8_weights(node) and node not in multiplied for node in model.graph):
            return ir.passes.PassResult(model, modified=False)
        model.opset_imports[MICROSOFT] = 1
        middle = constant(model.graph, _ZERO_POINT, np.uint8(MIDDLE))
        unsigned = {
            quantize: _plus_128(quantize, middle)
            for quantize in dict.fromkeys(product.quantize for product in products)
        }
        for product in products:
            _multiply_integers(product, unsigned[product.quantize], middle)
        return ir.passes.PassResult(model, modified=True)


class _Product(NamedTuple):
    """A product of INT8 values, and the nodes that its operands are from."""

    matmul: ir.Node
    quantize: ir.Node
    scale: ir.Value
    """Of the input."""
    token_scales: ir.Value | None
    """What each token of the input is multiplied by, [..., 1], where they have scales of their own."""
    weight: ir.Node


def _product(matmul: ir.Node) -> _Product | None:
    if matmul.op_type != "MatMul":
        return None
    x, weight, token_scales = input_of(matmul, 0), maker(matmul.inputs[1], "DequantizeLinear"), None
    if (multiply := maker(x, "Mul")) is not None:
        x, token_scales = input_of(multiply, 0), input_of(multiply, 1)
        if token_scales.shape is None or token_scales.shape.rank() < 2 or token_scales.shape[-1] != 1:
            return None
    dequantize = maker(x, "DequantizeLinear")
    quantize = None if dequantize is None else maker(dequantize.inputs[0], "QuantizeLinear")
    if dequantize is None or quantize is None or weight is None:
        return None
    scale, is_float = input_of(dequantize, 1), matmul.outputs[0].dtype == ir.DataType.FLOAT
    of_int8 = input_of(dequantize, 0).dtype == _INT8 and is_weight(weight, _INT8)
    has_zero_point = len(quantize.inputs) > 2 or len(dequantize.inputs) > 2
    if (
        not is_float
        or not of_int8
        or has_zero_point
        or shape_of(scale).rank() != 0
        or len(weight.outputs[0].uses()) > 1
    ):
        return None
    return _Product(matmul, quantize, scale, token_scales, weight)


def _multiply_integers(product: _Product, unsigned: ir.Value, middle: ir.Value) -> None:
    """
    Args:
        unsigned: the product's input, plus 128.
        middle: 128.
    """
    matmul, result, graph = product.matmul, product.matmul.outputs[0], graph_of(product.matmul)
    name = f"{name_of(result)}/MatMulIntegerToFloat"
    # One for each product: ONNX Runtime names what it makes of it for UINT8 weights by its name.
    zero = constant(graph, f"{name}/zero_point", np.int8(0))
    qweight, scale = product.weight.inputs
    operands = [unsigned, qweight, product.scale, scale, middle, zero]
    integer = ir.node("MatMulIntegerToFloat", operands, domain=MICROSOFT, name=name)
    if product.token_scales is None:
        replace_node(matmul, integer, [result])
        return
    integer.outputs[0].name, integer.outputs[0].shape, integer.outputs[0].type = name, result.shape, result.type
    graph.insert_before(matmul, integer)
    replace_node(matmul, ir.node("Mul", [integer.outputs[0], product.token_scales]), [result])


def _has_int8_weights(node: ir.Node) -> bool:
    """Whether this dequantizes INT8 weights."""
    if node.op_type != "DequantizeLinear":
        return False
    qweight = input_of(node, 0)
    return is_initializer(qweight) and qweight.dtype == _INT8


def _plus_128(quantize: ir.Node, middle: ir.Value) -> ir.Value:
    """What a node rounds to INT8, as UINT8: 0 is 128, and all else is as far from it."""
    signed = quantize.outputs[0]
    name = f"{name_of(signed)}/unsigned"
    node = ir.node("QuantizeLinear", [*quantize.inputs, middle], name=name)
    unsigned = node.outputs[0]
    unsigned.name, unsigned.shape, unsigned.type = name, signed.shape, ir.TensorType(_UINT8)
    graph_of(quantize).insert_after(quantize, node)
    return unsigned
