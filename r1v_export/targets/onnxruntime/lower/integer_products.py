"""Products of INT8 values are products of integers."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from r1v_export.exporters.graph_values import graph_of, input_of, is_initializer, name_of
from r1v_export.targets.onnxruntime.lower.pattern import MICROSOFT, maker, replace_node

_ZERO_POINT = "uint8_zero_point"
_INT8, _UINT8 = ir.DataType.INT8, ir.DataType.UINT8


class IntegerProducts(ir.passes.InPlacePass):
    """MatMul of an input that is rounded to INT8 and of an INT8 weight -> MatMulIntegerToFloat of the input plus 128.

    ONNX Runtime makes one only where the input has a zero point and no other product reads it. Otherwise it dequantizes
    the weight in every run: one row takes fifty times as long. Its fast kernels take inputs without a sign. Where a CPU
    needs weights without one, it takes theirs away at load (`session_options.EXACT_INT8`), and fails on a graph with
    INT8 weights of other operators, too: such a graph is left as it is.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        products = [product for node in model.graph if (product := _product(node)) is not None]
        multiplied = {product.weight for product in products}
        if not multiplied or any(_is_weight(node) and node not in multiplied for node in model.graph):
            return ir.passes.PassResult(model, modified=False)
        unsigned = {node: _plus_128(node) for node in dict.fromkeys(product.quantize for product in products)}
        for product in products:
            _multiply_integers(product, unsigned[product.quantize])
        return ir.passes.PassResult(model, modified=True)


class _Product(NamedTuple):
    """A product of INT8 values, and the nodes that its operands are from."""

    matmul: ir.Node
    tokens: ir.Node | None
    """What multiplies each token of the input by a scale of its own."""
    quantize: ir.Node
    scale: ir.Value
    weight: ir.Node


def _product(matmul: ir.Node) -> _Product | None:
    if matmul.op_type != "MatMul":
        return None
    tokens = maker(matmul.inputs[0], "Mul")
    x, weight = (_of_int8(value) for value in (tokens.inputs[0] if tokens else matmul.inputs[0], matmul.inputs[1]))
    quantize = maker(x.inputs[0], "QuantizeLinear") if x else None
    if x is None or quantize is None or weight is None or not _is_weight(weight):
        return None
    return _Product(matmul, tokens, quantize, input_of(x, 1), weight)


def _multiply_integers(product: _Product, unsigned: ir.Value) -> None:
    """
    Args:
        unsigned: the product's input, plus 128.
    """
    matmul, result, graph = product.matmul, product.matmul.outputs[0], graph_of(product.matmul)
    qweight, scale = product.weight.inputs
    operands = [unsigned, qweight, product.scale, scale, graph.initializers[_ZERO_POINT]]
    integer = ir.node("MatMulIntegerToFloat", operands, domain=MICROSOFT)
    if product.tokens is None:
        replace_node(matmul, integer, [result])
        return
    integer.name = integer.outputs[0].name = f"{matmul.name}/MatMulIntegerToFloat"
    integer.outputs[0].shape, integer.outputs[0].type = result.shape, result.type
    graph.insert_before(matmul, integer)
    replace_node(matmul, ir.node("Mul", [integer.outputs[0], product.tokens.inputs[1]]), [result])


def _is_weight(node: ir.Node) -> bool:
    """Whether this dequantizes INT8 weights."""
    if node.op_type != "DequantizeLinear":
        return False
    qweight = input_of(node, 0)
    return is_initializer(qweight) and qweight.dtype == _INT8


def _of_int8(value: ir.Value | None) -> ir.Node | None:
    """The DequantizeLinear of a value that is float32, from INT8 without a zero point, with a scale for all or one for
    each output feature."""
    node = maker(value, "DequantizeLinear")
    if node is None or len(node.inputs) > 2 or "block_size" in node.attributes:
        return None
    is_float = node.outputs[0].dtype == ir.DataType.FLOAT
    return node if is_float and input_of(node, 0).dtype == _INT8 else None


def _plus_128(quantize: ir.Node) -> ir.Value:
    """What a node rounds to INT8, as UINT8: 0 is 128, and all else is as far from it."""
    graph, signed = graph_of(quantize), quantize.outputs[0]
    if _ZERO_POINT not in graph.initializers:
        zero_point = ir.Value(name=_ZERO_POINT, const_value=ir.tensor(np.uint8(128), name=_ZERO_POINT))
        zero_point.shape, zero_point.type = ir.Shape(()), ir.TensorType(_UINT8)
        graph.register_initializer(zero_point)
    name = f"{name_of(signed)}/unsigned"
    node = ir.node("QuantizeLinear", [*quantize.inputs[:2], graph.initializers[_ZERO_POINT]], name=name)
    unsigned = node.outputs[0]
    unsigned.name, unsigned.shape, unsigned.type = name, signed.shape, ir.TensorType(_UINT8)
    graph.insert_after(quantize, node)
    return unsigned
