"""The three projections in front of GroupQueryAttention become one."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from r1v_export.exporters.graph_values import (
    dtype_of,
    graph_of,
    input_of,
    is_initializer,
    maker,
    name_of,
    producer,
    shape_of,
)

_FOUR_BITS = (ir.DataType.INT4, ir.DataType.UINT4)
_COLUMNS = 1
"""Axis of the outputs, of a weight [in, out] and of its scales and zero points [blocks, out]."""


class PackedProjections(ir.passes.InPlacePass):
    """Query, key and value projections of one input -> one MatMul and one Add on concatenated weights.

    One product of a useful width runs on all threads; key and value projections alone, a few hundred columns wide, do
    not. The Concat of the weights is in the graph and is folded by ONNX Runtime when it loads the model, so that the
    weights are not on disk a second time.

    4-bit weights with scales per group are concatenated in front of their DequantizeLinear, which ONNX Runtime then
    fuses with the one MatMul. Its Concat takes no 4-bit numbers: they go through INT8, at load. Other quantized
    projections stay as they are, and so do those whose inputs are not the same.

    Args:
        four_bits: pack 4-bit weights too; where it is the CPU that computes with them.

    Requires `GroupQueryAttention` to have run.
    """

    def __init__(self, four_bits: bool = False) -> None:
        super().__init__()
        self.four_bits = four_bits

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        layers = [node for node in model.graph if node.op_type == "GroupQueryAttention"]
        packed = [self._pack(attention) for attention in layers]
        return ir.passes.PassResult(model, modified=any(packed))

    def _pack(self, attention: ir.Node) -> bool:
        adds = [producer(value, "Add") for value in attention.inputs[:3]]
        matmuls = [producer(add.inputs[0], "MatMul") for add in adds]
        weights, sources = [[input_of(matmul, index) for matmul in matmuls] for index in (1, 0)]
        if all(map(is_initializer, weights)):
            if any(source is not sources[0] for source in sources):
                problem = "query, key and value are not projected from one input"
                raise ir.passes.PreconditionError(f"{attention.name}: {problem}")
            new = [_concatenated(weights, _COLUMNS)]
        elif self.four_bits and all(source is sources[0] for source in sources):
            new = _four_bits([maker(weight, "DequantizeLinear") for weight in weights])
        else:
            new = []
        if not new:
            return False
        bias = _concatenated([add.inputs[1] for add in adds], axis=0)
        matmul = ir.node("MatMul", [sources[0], new[-1].outputs[0]], name=f"{attention.name}/qkv_proj/MatMul")
        add = ir.node("Add", [matmul.outputs[0], bias.outputs[0]], name=f"{attention.name}/qkv_proj/Add")
        graph_of(attention).insert_before(attention, [*new, bias, matmul, add])
        attention.replace_input_with(0, add.outputs[0])
        attention.replace_input_with(1, None)
        attention.replace_input_with(2, None)
        return True


def _four_bits(parts: Sequence[ir.Node | None]) -> list[ir.Node]:
    """The nodes that dequantize several 4-bit weights as one, the last of which does so; none if they do not fit."""
    dequantize = [part for part in parts if part is not None and _groups_of_four_bits(part)]
    kinds = {
        (dtype_of(input_of(part, 0)), part.attributes.get_int("block_size", 0), len(part.inputs)) for part in dequantize
    }
    if len(dequantize) < len(parts) or len(kinds) > 1:
        return []
    nodes, inputs = [], []
    for values in zip(*(part.inputs for part in dequantize), strict=True):
        constants = [value for value in values if value is not None]
        dtype = dtype_of(constants[0])
        wide = [ir.node("Cast", [each], {"to": ir.DataType.INT8}, name=f"{each.name}/Cast") for each in constants]
        wide = wide if dtype in _FOUR_BITS else []
        joined = _concatenated([cast.outputs[0] for cast in wide] or constants, _COLUMNS, name_of(constants[0]))
        nodes += [*wide, joined]
        if wide:
            nodes.append(ir.node("Cast", [joined.outputs[0]], {"to": dtype}, name=f"{constants[0].name}/packed"))
        inputs.append(nodes[-1].outputs[0])
    packed = ir.node("DequantizeLinear", inputs, name=f"{dequantize[0].name}/packed")
    packed.attributes.update(dequantize[0].attributes)
    return [*nodes, packed]


def _groups_of_four_bits(dequantize: ir.Node) -> bool:
    """Whether a constant weight [in, out] has 4 bits, and scales [groups, out]."""
    weight, scale = input_of(dequantize, 0), input_of(dequantize, 1)
    return (
        all(is_initializer(value) for value in dequantize.inputs)
        and dtype_of(weight) in _FOUR_BITS
        and dequantize.attributes.get_int("axis", _COLUMNS) == 0
        and shape_of(scale).rank() == 2
    )


def _concatenated(constants: Sequence[ir.Value | None], axis: int, name: str | None = None) -> ir.Node:
    names = [constant.name or "" for constant in constants if constant is not None]
    return ir.node("Concat", constants, {"axis": axis}, name=f"{name or names[0]}/Concat")
