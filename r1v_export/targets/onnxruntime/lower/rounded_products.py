"""Products of float32 values are products of 8-bit integers."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from r1v_export.exporters.graph_values import graph_of, input_of, is_initializer, name_of, shape_of
from r1v_export.targets.onnxruntime.lower.pattern import MICROSOFT, constant, replace_node
from r1v_export.targets.onnxruntime.rounding import LEVELS, MIDDLE

_LEAST_LARGEST = 1e-30
"""Of a token that is all zeros, which cannot be divided by its largest value."""
Rounding = Callable[[ir.Value], tuple[ir.Value, ir.Value]]
"""From a float32 weight [in, out], an initializer, to new ones: UINT8 around 128, and scales [out]."""


class RoundedProducts(ir.passes.InPlacePass):
    """MatMul of a float32 input and a weight [in, out] -> both rounded to 8 bits, and MatMulIntegerToFloat.

    Inputs are rounded by the largest value of each token, at once for all products that read them; weights by that of
    each output channel. A token with a value that is no number has none in its result. Both are UINT8 around 128: with
    signed weights ONNX Runtime's sums overflow on x86 CPUs without VNNI (`session_options.EXACT_INT8`), and what it
    does against that takes longer than all else of opening a graph.
    """

    def __init__(self, rounding: Rounding) -> None:
        super().__init__()
        self._rounding = rounding

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        products = [node for node in model.graph if _is_product(node)]
        if not products:
            return ir.passes.PassResult(model, modified=False)
        model.opset_imports[MICROSOFT] = 1
        constants = _Constants(
            constant(model.graph, "int8/zero_point", np.uint8(MIDDLE)),
            constant(model.graph, "int8/step", np.float32(1 / LEVELS)),
            constant(model.graph, "int8/least_largest", np.float32(_LEAST_LARGEST)),
            constant(model.graph, "int8/last_axis", np.array([-1])),
            constant(model.graph, "int8/nothing", np.float32(0)),
        )
        inputs, weights = dict[ir.Value, _Tokens](), dict[ir.Value, tuple[ir.Value, ir.Value]]()
        for matmul in products:
            x, weight = input_of(matmul, 0), input_of(matmul, 1)
            if x not in inputs:
                inputs[x] = _round_tokens(x, matmul, constants)
            if weight not in weights:
                weights[weight] = self._rounding(weight)
                for value in weights[weight]:
                    model.graph.register_initializer(value)
            _multiply(matmul, inputs[x], *weights[weight], constants)
        return ir.passes.PassResult(model, modified=True)


class _Constants(NamedTuple):
    zero_point: ir.Value
    step: ir.Value
    least_largest: ir.Value
    last_axis: ir.Value
    nothing: ir.Value


class _Tokens(NamedTuple):
    """What products read: each token by its largest value, in 8 bits; and those values [..., 1]."""

    rounded: ir.Value
    largest: ir.Value


def _is_product(node: ir.Node) -> bool:
    if node.op_type != "MatMul":
        return False
    weight = node.inputs[1]
    return is_initializer(weight) and weight.dtype == ir.DataType.FLOAT and shape_of(weight).rank() == 2


def _round_tokens(x: ir.Value, before: ir.Node, constants: _Constants) -> _Tokens:
    def add(op_type: str, *inputs: ir.Value, **attributes: int) -> ir.Value:
        node = ir.node(op_type, inputs, attributes, name=f"{name_of(x)}/int8/{op_type}")
        node.outputs[0].name = node.name
        graph_of(before).insert_before(before, node)
        return node.outputs[0]

    highest = add("ReduceMax", x, constants.last_axis, keepdims=1)
    lowest = add("ReduceMin", x, constants.last_axis, keepdims=1)
    finite = add("Max", highest, add("Neg", lowest), constants.least_largest)
    # ReduceMax and ReduceMin pass over values that are no numbers, a sum does not.
    largest = add("Add", finite, add("Mul", add("ReduceSum", x, constants.last_axis, keepdims=1), constants.nothing))
    rounded = add("QuantizeLinear", add("Div", x, largest), constants.step, constants.zero_point)
    return _Tokens(rounded, largest)


def _multiply(matmul: ir.Node, x: _Tokens, qweight: ir.Value, scale: ir.Value, constants: _Constants) -> None:
    zero = constants.zero_point
    operands = [x.rounded, qweight, constants.step, scale, zero, zero]
    name = f"{name_of(matmul.outputs[0])}/MatMulIntegerToFloat"
    product = ir.node("MatMulIntegerToFloat", operands, domain=MICROSOFT, name=name)
    product.outputs[0].name = name
    graph_of(matmul).insert_before(matmul, product)
    replace_node(matmul, ir.node("Mul", [product.outputs[0], x.largest]), [matmul.outputs[0]])
